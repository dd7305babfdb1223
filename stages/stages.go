// Package stages is the story: the order in which a job's nouns are made, the
// two plans, the steps a bundle defines, and the report of what happened.
//
// It is the only package that knows the others; they don't know each other.
package stages
