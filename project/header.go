package project

// Header is the frozen few fields that are readable before any bundle is
// known, so that a file can be written for a platform newer than the runner.
type Header struct {
	Version int    // 0 when the file does not say
	Service string // required
	Tier    Tier   // empty when the file does not say
	Channel string // stable when the file does not say
}
