package project

import "testing"

func TestParsePlace(t *testing.T) {
	const good = "version: 1\nservice: {name: shop}\nenvironments:\n  prod: {cluster: hz-1, namespace: team-shop}\n"
	want := Place{Service: "shop", Cluster: "hz-1", Namespace: "team-shop"}
	for name, tc := range map[string]struct {
		text string
		want Place
	}{
		"right":                {good, want},
		"refused elsewhere":    {good + "functions: 7\nprovider: {runtime: none}\n", want},
		"no YAML below":        {good + "functions:\n  a: [\n b: }\n", want},
		"no YAML above":        {"plugins: ]\n" + good, want},
		"a tab":                {good + "functions:\n\ta: 1\n", want},
		"another environment":  {"service: shop\nenvironments:\n  test: {namespace: x}\nfunctions: [\n", Place{Service: "shop"}},
		"the short name":       {"service: shop\nfunctions: [\n", Place{Service: "shop"}},
		"a key inside a text":  {good + "functions:\n  a:\n    doc: |\n      service: other\n    x: [\n", want},
		"a comment with a key": {good + "# service: other\nfunctions: [\n", want},
	} {
		if got, err := ParsePlace([]byte(tc.text), "prod"); err != nil || got != tc.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tc.want)
		}
	}
	for name, text := range map[string]string{
		"empty":                 "",
		"no service":            "version: 1\nfunctions: [\n",
		"broken service":        "service: {name: shop\nfunctions: 1\n",
		"broken environments":   "service: shop\nenvironments:\n  prod: {namespace: x\n  test: }\nfunctions: 1\n",
		"two services":          "service: shop\nservice: other\n",
		"two services, no YAML": "service: shop\nfunctions: [\nservice: other\n",
		"a variable":            "service: shop\nenvironments:\n  prod: {namespace: '${env:NS}'}\nfunctions: 7\n",
		"no name":               "service: [shop]\n",
	} {
		if got, err := ParsePlace([]byte(text), "prod"); err == nil || err.Error() == "" {
			t.Errorf("%s: %+v, %v; want an error: it may run elsewhere", name, got, err)
		}
	}
}
