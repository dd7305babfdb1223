package kaniko_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

func TestLint(t *testing.T) {
	for _, tt := range []struct {
		name, dockerfile string
		want             []string // place, rule and the beginning of the text
	}{
		{"nothing to say", "FROM x AS one\nWORKDIR /app\nWORKDIR sub\nCMD [\"a\"]\n", nil},
		{"buildkit's rules", "from x AS One\nENV A b\nWORKDIR rel\nCMD run me\nCMD [\"b\"]\nMAINTAINER me\n", []string{
			"1:1 StageNameCasing Stage name 'One'", "1:1 FromAsCasing 'AS' and 'from'", "2:1 LegacyKeyValueFormat \"ENV key=value\"", "3:1 WorkdirRelativePath Relative workdir \"rel\"",
			"4:1 JSONArgsRecommended JSON arguments", "5:1 MultipleInstructionsDisallowed Multiple CMD", "6:1 MaintainerDeprecated Maintainer",
		}},
		{"secrets", "ARG NPM_TOKEN\nFROM x\nENV DB_PASSWORD=x KEYBOARD=y\n", []string{"1:1 SecretsUsedInArgOrEnv", "3:1 SecretsUsedInArgOrEnv Do not use ARG or ENV"}},
		{"what stays in layers", "FROM x\nRUN apt-get update && \\\n  apt-get install -y curl\nRUN npm ci --cache /tmp/c\nRUN pip install --no-cache-dir a\n  RUN cd a && npm ci\n", []string{
			"3:3 PackageCache RUN apt-get install: apt's lists", "6:15 PackageCache RUN npm ci: npm's cache",
		}},
		{"volume", "FROM x\nVOLUME /v\n", []string{"2:1 FunctionVolume"}},
		{"two stages of a name", "FROM x AS a\nFROM y AS a\nFROM z AS scratch\n", []string{"2:1 DuplicateStageName", "3:1 ReservedStageName"}},
		{"caches that are mounted", "FROM x\nRUN --mount=type=cache,target=/root/.npm npm ci\nRUN --mount=type=tmpfs,target=$HOME/.cache pip install a\nRUN --mount=type=secret,id=x npm ci\n", []string{"4:30 PackageCache RUN npm ci: npm's cache"}},
		{"silenced", "# check=skip=PackageCache,JSONArgsRecommended\nFROM x\nRUN npm ci\nCMD a\nVOLUME /v\n", []string{"5:1 FunctionVolume"}},
		{"not a Dockerfile", "FROM\nNO\n", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range kaniko.Lint([]byte(tt.dockerfile)) {
				if !p.Advice {
					t.Errorf("%v stops the build", p)
				}
				got = append(got, octal(int64(p.Line))+":"+decimal(p.Column)+" "+p.Rule+" "+p.Text)
			}
			if len(got) != len(tt.want) || !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
	if p := kaniko.Lint([]byte("# check=error=true\nFROM x\nCMD a\n")); len(p) != 1 || p[0].Advice || p[0].URL == "" {
		t.Errorf("as errors: %+v", p)
	}
}

func FuzzLint(f *testing.F) {
	f.Add("# check=skip=all\nFROM x\nRUN npm ci\n")
	f.Add("# check=error=true;skip=A\nFROM x AS B\nENV A b\nCMD a \\\n\n b\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, p := range kaniko.Lint([]byte(text)) {
			if p.Text == "" || p.Rule == "" {
				t.Errorf("advice without words: %+v", p)
			}
		}
	})
}
