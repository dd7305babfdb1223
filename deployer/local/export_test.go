package local

import "time"

// Tick makes the clock look as if it were now, in tests.
func (s *Server) Tick(now time.Time) { s.due(s.alive, now) }
