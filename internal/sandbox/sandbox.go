// Package sandbox runs a command in its own namespaces inside a given root
// folder, as root or in a user namespace. Where the kernel forbids both it
// says so, and callers decide whether a weaker form will do.
package sandbox
