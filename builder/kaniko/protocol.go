package kaniko

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Where things are inside the sandbox.
const (
	insideDir      = "/kaniko"
	InsideExecutor = insideDir + "/executor"
	InsideContext  = insideDir + "/context"
	// Guard is a file with the order's nonce: the executor unpacks over / and
	// must never run where it is missing.
	Guard = insideDir + "/guard"
	// FromDir has a folder for each COPY --from.
	FromDir = insideDir + "/from"
	// Out receives what was made: layers and outcome.json.
	Out = insideDir + "/out"
	// ChildCommand, as the only argument, tells the executor that it is inside.
	ChildCommand = "in-sandbox"
	// OrderFD is the descriptor that the order arrives on. ChangesFD is the
	// folder of the changes, in overlay's form, BeforeFD the files without them.
	OrderFD, ChangesFD, BeforeFD = 3, 4, 5
)

// Order is what the engine tells the executor in the sandbox. It holds no
// credentials but those that a RUN asks for: it can read everything that the
// executor can.
type Order struct {
	Nonce      string
	Dockerfile []byte
	// Chain are the stages to carry out, by number: the one that is built and
	// before it those that it stands on. Skip of their instructions have their
	// layers already: they only set what later ones see.
	Chain []int
	Skip  int
	// Until is where to stop, as a number of instructions.
	Until int
	// Machine are variables of the commands that the image's own replace, Env
	// those that come from secrets.
	Machine, Env []string
	Name         string // of the stage, for people
	// Args are given from outside, Meta declared before the first FROM.
	Args, Meta map[string]string
	// Config is a [v1.Config], that of the base image. Its files are the root
	// already.
	Config json.RawMessage
	// From are the folders below FromDir with the files of a COPY --from, by
	// its place in Chain's instructions.
	From map[int]int
	// Rootless: there is one user and one group only.
	Rootless bool
}

// Outcome is what the executor answers, in Out/outcome.json.
type Outcome struct {
	Config json.RawMessage
	// Layers are the instructions, by their place, that made a layer each:
	// <place>.tar.
	Layers []int
	// Failure is empty when all was carried out.
	Failure string
	// Command is the instruction that failed, Line where it stands, and Code
	// its exit code, when a command ended otherwise than with 0.
	Command string
	Line    int
	Code    int
}

// ReadOrder checks that this process is the executor of a sandbox and reads
// its order.
func ReadOrder() (Order, error) {
	var o Order
	if os.Getpid() != 1 {
		return o, errors.New("refused: this is not process 1 of a sandbox")
	}
	guard, err := os.ReadFile(Guard)
	if err != nil {
		return o, fmt.Errorf("refused: this is not a sandbox: %w", err)
	}
	pipe := os.NewFile(OrderFD, "order")
	if pipe == nil {
		return o, errors.New("refused: no order")
	}
	defer pipe.Close()
	if err := json.NewDecoder(pipe).Decode(&o); err != nil {
		return o, fmt.Errorf("refused: read the order: %w", err)
	}
	if o.Nonce == "" || o.Nonce != string(guard) {
		return o, errors.New("refused: the order is for another sandbox")
	}
	return o, nil
}

// WriteOutcome answers the engine.
func WriteOutcome(o Outcome) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(Out, "outcome.json"), b, 0o644)
}
