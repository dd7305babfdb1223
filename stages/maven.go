package stages

import (
	"encoding/xml"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/project"
)

// What Maven does for a Java project that says nothing about its build: the
// classes, and the libraries that they need at run time beside them. No jar is
// packed: one holds the time, and would be another image in every pipeline.
const (
	mavenFile    = "pom.xml"
	mavenCommand = "mvn -B -ntp compile org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies -DincludeScope=runtime"
	mavenOutput  = "target"
)

// gitDir is no part of what people wrote.
const gitDir = ".git"

// gradleFiles say that Gradle builds a project.
var gradleFiles = []string{"build.gradle", "build.gradle.kts", "settings.gradle", "settings.gradle.kts"}

// withConvention gives a Java project that says neither build.command nor
// build.output the build of its pom.xml.
func withConvention(p *project.Project, dir string) error {
	b := p.Build
	java := slices.ContainsFunc(p.Functions, func(f project.Function) bool {
		return f.Language == "java" && f.Runtime == commandRuntime(p, "")
	})
	if !java || b.Command != "" || b.Output != "" || b.Builder != "" && b.Builder != "layer" {
		return nil
	}
	pom, err := os.ReadFile(filepath.Join(dir, mavenFile))
	if errors.Is(err, fs.ErrNotExist) {
		for _, f := range gradleFiles {
			if _, err := os.Stat(filepath.Join(dir, f)); err == nil {
				return &builder.InputError{
					What: "there is a " + f + ", and builds with Gradle are planned",
					Next: "say how to build in faas.yml: build: {command: ./gradlew installDist, output: build}",
				}
			}
		}
		return nil
	}
	var doc struct {
		Modules []string `xml:"modules>module"`
	}
	if err == nil {
		err = xml.Unmarshal(pom, &doc)
	}
	if err != nil {
		return &builder.InputError{What: "read " + mavenFile, Next: "correct " + mavenFile, Err: err}
	}
	if len(doc.Modules) > 0 {
		return &builder.InputError{
			What: mavenFile + " has modules, and which of them is deployed is not said",
			Next: "say it in faas.yml: build: {command: mvn -B -pl MODULE -am package, output: MODULE/target}",
		}
	}
	set := func(b *project.Build) { b.Command, b.Output = mavenCommand, mavenOutput }
	set(&p.Build)
	for i := range p.Functions {
		if p.Functions[i].Language == "java" {
			set(&p.Functions[i].Build)
		}
	}
	for i := range p.Units {
		if p.Units[i].Language == "java" {
			set(&p.Units[i].Build)
		}
	}
	p.Notices = append(p.Notices, project.Notice{Path: "build", Why: "nothing is said, so that " + mavenFile + " counts: " + mavenCommand})
	return nil
}

// mavenStart is read by Maven's start script. A run over few classes ends before
// the JVM's second compiler has paid for itself: without it a code change takes
// a quarter less. From some 600 classes on it takes longer.
const (
	mavenStart  = "MAVEN_OPTS=\"-XX:TieredStopAtLevel=1${MAVEN_OPTS:+ $MAVEN_OPTS}\"\n" // the last one counts: the project's
	manyClasses = 500
)

// fewClasses tells that the work tree has less than many files of Java, or none
// that can be counted.
func fewClasses(dir string) bool {
	n := 0
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir() && (caches[d.Name()] || d.Name() == gitDir):
			return fs.SkipDir
		case filepath.Ext(d.Name()) == ".java":
			if n++; n == manyClasses {
				return fs.SkipAll
			}
		}
		return nil
	})
	return n < manyClasses
}

// mavenSettings sends Maven to one repository for everything.
func mavenSettings(address string) []byte {
	type mirror struct {
		ID       string `xml:"id"`
		MirrorOf string `xml:"mirrorOf"`
		URL      string `xml:"url"`
	}
	out, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"settings"`
		Mirrors []mirror `xml:"mirrors>mirror"`
	}{Mirrors: []mirror{{"platform", "*", address}}})
	if err != nil { // strings alone: there is nothing that can't be written
		return nil
	}
	return out
}
