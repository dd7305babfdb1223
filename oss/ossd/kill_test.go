package ossd

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

const killRoot = "KUROKO_TEST_KILL_ROOT"

// killed are the contents that TestKilledChild writes in turn.
func killed(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%2)}, (i%2+1)<<20) }

// TestKill kills a process in the middle of its writes, again and again; what
// it leaves opens, and the object is whole.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts and kills processes")
	}
	root := t.TempDir()
	for round := range 8 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$")
		cmd.Env = []string{killRoot + "=" + root}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range round + 2 {
			if !lines.Scan() {
				t.Fatal("the child wrote nothing")
			}
		}
		cmd.Process.Kill()
		cmd.Wait() // with the error that it was killed

		s, err := New(root)
		if err != nil {
			t.Fatal(err)
		}
		b := s.store.buckets["bucket"]
		o := b.newest("k")
		if o == nil {
			t.Fatal("the object is gone")
		}
		content, err := s.store.copyOf(b, o)
		if err != nil {
			t.Fatal(err)
		}
		if content.crc != o.CRC || content.size != o.Size {
			t.Errorf("round %d: %d bytes with checksum %d, described as %d with %d", round, content.size, content.crc, o.Size, o.CRC)
		}
		s.Close()
	}
}

// TestKilledChild is the process that TestKill kills.
func TestKilledChild(t *testing.T) {
	root := os.Getenv(killRoot)
	if root == "" {
		t.Skip("runs as a child of TestKill")
	}
	s, err := New(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateBucket("bucket", Private); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ { // until killed, or nobody reads any more
		if err := s.PutObject("bucket", "k", killed(i)); err != nil {
			t.Fatal(err)
		}
		fmt.Println("written", i)
	}
}
