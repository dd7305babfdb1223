package deployer_test

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

// A function that moves into a new unit is proven there before the unit that
// it leaves changes: in between, both answer. And a release carries what its
// units were made of.
func TestNewUnitsAreProvenFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		deploy(t, c, plan(1, unit("main", "aa")))
		var order []string
		p := plan(2, unit("main", "bb"), unit("quote", "cc"))
		p.Inputs = map[string]map[string]string{"shop-quote": {"code": "c"}}
		out, err := deployer.Deploy(t.Context(), c, p, deployer.Options{Holder: t.Name(), Progress: func(e deployer.Event) {
			if e.Step == deployer.StepTraffic || e.Step == deployer.StepCheck {
				order = append(order, string(e.Step)+" "+e.Unit)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"traffic quote", "check quote", "traffic main", "check main"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
		rel, err := c.Release(t.Context(), scope, out.ID)
		if err != nil {
			t.Fatal(err)
		}
		if rel.Units[0].Inputs != nil || rel.Units[1].Inputs["code"] != "c" {
			t.Errorf("inputs %v, %v", rel.Units[0].Inputs, rel.Units[1].Inputs)
		}
	})
}
