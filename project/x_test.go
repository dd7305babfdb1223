package project

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
)

func TestX(t *testing.T) {
	for _, f := range []string{"min", "a", "b"} {
		d, _ := os.ReadFile("/tmp/p3x/" + f + ".yml")
		env := "prod"
		if f == "min" { env = "test" }
		p, err := Parse(d, Options{Environment: env, Runtimes: []RuntimeInfo{{"nodejs18", "node"}, {"python3.11", "python"}, {"java17", "java"}}, Plugins: []string{"request-log"}, Layers: []string{"ffmpeg"}})
		if err != nil {
			t.Error(f, err)
			continue
		}
		b, _ := json.MarshalIndent(p, "", " ")
		fmt.Println(string(b))
		for _, o := range p.Origins() { fmt.Println(o.Path, o.Value, "|", o.From, "|", o.Layer) }
	}
}
