package npm_test

import (
	"errors"
	"fmt"

	"github.com/kuroko-faas/kuroko/builder/npm"
)

func ExampleLock_Plan() {
	lock, err := npm.Parse([]byte(`{"dependencies": {"left": "^2.0.0"}}`),
		[]byte(`{"lockfileVersion": 3, "packages": {"": {"dependencies": {"left": "^1.0.0"}}, "node_modules/left": {"version": "1.3.0"}}}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = lock.Plan(npm.LinuxX64)
	var step *npm.OutOfStepError
	if errors.As(err, &step) {
		fmt.Println(step.Problems[0])
		fmt.Println("run", step.Fix)
	}
	// Output:
	// left: package.json wants ^2.0.0, the lock file has 1.3.0
	// run npm install --package-lock-only
}
