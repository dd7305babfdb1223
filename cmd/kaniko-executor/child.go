package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/GoogleContainerTools/kaniko/pkg/config"
	"github.com/GoogleContainerTools/kaniko/pkg/executor"
	"github.com/GoogleContainerTools/kaniko/pkg/image"
	"github.com/GoogleContainerTools/kaniko/pkg/logging"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

// child is process 1 of the sandbox: it carries out the Dockerfile over / and
// leaves the new layers in kaniko.Out. Its result is the exit code.
func child(stderr io.Writer) int {
	o, err := kaniko.ReadOrder()
	if err != nil {
		fmt.Fprintln(stderr, "kaniko-executor: "+err.Error())
		return 70
	}
	outcome := build(o)
	if err := kaniko.WriteOutcome(outcome); err != nil {
		fmt.Fprintln(stderr, "kaniko-executor: "+err.Error())
		return 70
	}
	if outcome.Failure != "" {
		return 1
	}
	return 0
}

func build(o kaniko.Order) (outcome kaniko.Outcome) {
	last := &lastInstruction{}
	logrus.AddHook(last)
	defer func() {
		if r := recover(); r != nil {
			outcome = kaniko.Outcome{Failure: fmt.Sprintf("kaniko panicked: %v", r), Command: last.text}
		}
	}()
	img, err := execute(o)
	if err == nil {
		outcome.Layers, err = write(img, o)
	}
	if err == nil {
		return outcome
	}
	outcome = kaniko.Outcome{Failure: err.Error(), Command: last.text}
	var exited *exec.ExitError
	if errors.As(err, &exited) {
		outcome.Code = exited.ExitCode()
		if ws, ok := exited.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			outcome.Code = 128 + int(ws.Signal())
		}
	}
	return outcome
}

// execute calls kaniko as its command line would, which does more than its
// library: unset options are errors or, worse, quiet.
func execute(o kaniko.Order) (v1.Image, error) {
	if err := logging.Configure("info", logging.FormatText, false); err != nil {
		return nil, err
	}
	// A RUN inherits whatever isn't marked.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		logrus.Debugf("close_range: %v", err)
	}
	// kaniko takes the Dockerfile from here, so that .dockerignore can name it.
	if err := os.WriteFile(config.DockerfilePath, o.Dockerfile, 0o600); err != nil {
		return nil, err
	}
	if o.Manifest != nil {
		base, err := partial.CompressedToImage(&baseImage{manifest: o.Manifest, config: o.Config})
		if err != nil {
			return nil, err
		}
		// The only image that kaniko may ask for is the base: the parent has
		// refused everything else, and there are no credentials here.
		image.RetrieveRemoteImage = func(string, config.RegistryOptions, string) (v1.Image, error) { return base, nil }
	} else {
		image.RetrieveRemoteImage = func(name string, _ config.RegistryOptions, _ string) (v1.Image, error) {
			return nil, fmt.Errorf("%s: no image can be fetched here", name)
		}
	}
	opts := &config.KanikoOptions{
		DockerfilePath: config.DockerfilePath, SrcContext: kaniko.InsideContext,
		SnapshotMode: "redo", CustomPlatform: o.Platform, Target: o.Target,
		// 1, because the layers are only read back: the parent compresses.
		CompressionLevel: 1,
		NoPush:           true, InitialFSUnpacked: true,
		// /var/run is in images like any other folder: nothing is mounted there.
		IgnoreVarRun: false,
	}
	opts.KanikoDir = config.KanikoDir
	opts.RegistryMaps = map[string][]string{}
	opts.RegistriesCertificates, opts.RegistriesClientCertificates = map[string]string{}, map[string]string{}
	for _, a := range o.Args {
		if err := opts.BuildArgs.Set(a); err != nil {
			return nil, err
		}
	}
	if err := os.Chdir("/"); err != nil {
		return nil, err
	}
	return executor.DoBuild(opts)
}

// write leaves configuration and new layers for the parent.
func write(img v1.Image, o kaniko.Order) (int, error) {
	raw, err := img.RawConfigFile()
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(kaniko.Out, "config.json"), raw, 0o644); err != nil {
		return 0, err
	}
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	below := 0
	if o.Manifest != nil {
		var m v1.Manifest
		if err := json.Unmarshal(o.Manifest, &m); err != nil {
			return 0, err
		}
		below = len(m.Layers)
	}
	if below > len(layers) {
		return 0, fmt.Errorf("the image has %d layers and its base %d", len(layers), below)
	}
	for i, l := range layers[below:] {
		if err := writeLayer(filepath.Join(kaniko.Out, fmt.Sprintf("%d.tar", i)), l); err != nil {
			return 0, err
		}
	}
	return len(layers) - below, nil
}

func writeLayer(name string, l v1.Layer) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// baseImage is the base as far as kaniko needs it: what it says about itself.
// Its files are below the overlay already.
type baseImage struct{ manifest, config []byte }

func (b *baseImage) RawManifest() ([]byte, error)   { return b.manifest, nil }
func (b *baseImage) RawConfigFile() ([]byte, error) { return b.config, nil }

func (b *baseImage) MediaType() (types.MediaType, error) {
	var m v1.Manifest
	if err := json.Unmarshal(b.manifest, &m); err != nil {
		return "", err
	}
	if m.MediaType == "" {
		return types.OCIManifestSchema1, nil
	}
	return m.MediaType, nil
}

func (b *baseImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	var m v1.Manifest
	if err := json.Unmarshal(b.manifest, &m); err != nil {
		return nil, err
	}
	for _, d := range append(m.Layers, m.Config) {
		if d.Digest == h {
			return baseLayer{d}, nil
		}
	}
	return nil, fmt.Errorf("the base has no layer %s", h)
}

// baseLayer is a layer whose content stays outside.
type baseLayer struct{ d v1.Descriptor }

func (l baseLayer) Digest() (v1.Hash, error)            { return l.d.Digest, nil }
func (l baseLayer) Size() (int64, error)                { return l.d.Size, nil }
func (l baseLayer) MediaType() (types.MediaType, error) { return l.d.MediaType, nil }
func (l baseLayer) Compressed() (io.ReadCloser, error) {
	return nil, errors.New("the base's layers are not in the sandbox")
}

// lastInstruction remembers which instruction kaniko said it begins: its
// errors don't name one.
type lastInstruction struct{ text string }

func (*lastInstruction) Levels() []logrus.Level { return []logrus.Level{logrus.InfoLevel} }

func (l *lastInstruction) Fire(e *logrus.Entry) error {
	for _, verb := range []string{"RUN ", "COPY ", "ADD ", "WORKDIR ", "USER "} {
		if strings.HasPrefix(e.Message, verb) {
			l.text = e.Message
		}
	}
	return nil
}
