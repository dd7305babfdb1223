package project

// DefaultPolicy is what applies where the bundle's policy says nothing.
func DefaultPolicy() Policy { return Policy{} }
