package attest

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	purl "github.com/package-url/packageurl-go"
)

// Component is one package in an image.
type Component struct {
	// Type is that of a package URL: deb, npm, pypi, maven, oci, generic.
	Type string
	// Namespace is the vendor, scope or group: debian, @team, org.example.
	Namespace     string
	Name, Version string
	Arch          string // of Debian packages
	// Integrity is the sum that a lock file pins, as "sha512-<base64>"; empty
	// where there is none.
	Integrity string
	// Layer is the kind of layer that it came with: base, builtin,
	// dependencies.
	Layer string
}

// PURL is the component's package URL, its identity everywhere.
func (c Component) PURL() string {
	var q purl.Qualifiers
	if c.Arch != "" {
		q = purl.QualifiersFromMap(map[string]string{"arch": c.Arch})
	}
	return purl.NewPackageURL(c.Type, c.Namespace, c.Name, c.Version, q, "").ToString()
}

// BOM is a bill of materials.
type BOM struct {
	// Name and Version of what it is about: "nodejs18".
	Name, Version string
	Components    []Component
	// Unknown says what is in the image and not listed here, a phrase each:
	// "packages of the base image". Empty means that the list is complete.
	Unknown []string
}

const (
	propLayer   = "io.kuroko:layer"
	propUnknown = "io.kuroko:unknown"
)

var hashNames = map[string]cdx.HashAlgorithm{"sha256": cdx.HashAlgoSHA256, "sha384": cdx.HashAlgoSHA384, "sha512": cdx.HashAlgoSHA512, "sha1": cdx.HashAlgoSHA1}

// JSON writes b as CycloneDX 1.6. Equal lists give equal bytes: sorted, each
// component once per layer, no time, no serial number.
func (b BOM) JSON() ([]byte, error) {
	list := slices.Clone(b.Components)
	slices.SortFunc(list, func(x, y Component) int {
		return cmp.Or(cmp.Compare(x.Layer, y.Layer), cmp.Compare(x.PURL(), y.PURL()), cmp.Compare(x.Integrity, y.Integrity))
	})
	list = slices.CompactFunc(list, func(x, y Component) bool { return x.Layer == y.Layer && x.PURL() == y.PURL() })
	doc := cdx.NewBOM()
	doc.SerialNumber = ""
	doc.Metadata = &cdx.Metadata{
		Component: &cdx.Component{BOMRef: "image", Type: cdx.ComponentTypeContainer, Name: b.Name, Version: b.Version},
		Tools:     &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "kuroko"}}},
	}
	components := make([]cdx.Component, 0, len(list))
	for _, c := range list {
		p := c.PURL()
		out := cdx.Component{
			// One package may be in two layers.
			BOMRef: c.Layer + ":" + p, Type: cdx.ComponentTypeLibrary, Group: c.Namespace, Name: c.Name, Version: c.Version, PackageURL: p,
			Properties: &[]cdx.Property{{Name: propLayer, Value: c.Layer}},
		}
		if h := hashes(c.Integrity); len(h) > 0 {
			out.Hashes = &h
		}
		components = append(components, out)
	}
	doc.Components = &components
	aggregate := cdx.CompositionAggregateComplete
	if len(b.Unknown) > 0 {
		aggregate = cdx.CompositionAggregateIncomplete
		unknown := slices.Sorted(slices.Values(b.Unknown))
		var props []cdx.Property
		for _, u := range slices.Compact(unknown) {
			props = append(props, cdx.Property{Name: propUnknown, Value: u})
		}
		doc.Properties = &props
	}
	doc.Compositions = &[]cdx.Composition{{Aggregate: aggregate, Assemblies: &[]cdx.BOMReference{"image"}}}
	var out bytes.Buffer
	enc := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON)
	enc.SetEscapeHTML(false)
	if err := enc.EncodeVersion(doc, cdx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("attest: write the bill of materials: %w", err)
	}
	return out.Bytes(), nil
}

// hashes are the readable ones of an integrity value, which may name several.
func hashes(integrity string) []cdx.Hash {
	var out []cdx.Hash
	for _, one := range strings.Fields(integrity) {
		alg, sum, _ := strings.Cut(one, "-")
		raw, err := base64.StdEncoding.DecodeString(sum)
		if name, ok := hashNames[alg]; ok && err == nil {
			out = append(out, cdx.Hash{Algorithm: name, Value: hex.EncodeToString(raw)})
		}
	}
	return out
}

// ReadBOM reads a bill of materials of ours; layer replaces what it says of
// the layers, "" keeps it. Of others it takes the components that have a
// package URL.
func ReadBOM(data []byte, layer string) (BOM, error) {
	var doc cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(data), cdx.BOMFileFormatJSON).Decode(&doc); err != nil {
		return BOM{}, fmt.Errorf("attest: read the bill of materials: %w", err)
	}
	var b BOM
	if doc.Metadata != nil && doc.Metadata.Component != nil {
		b.Name, b.Version = doc.Metadata.Component.Name, doc.Metadata.Component.Version
	}
	if doc.Components == nil {
		doc.Components = new([]cdx.Component)
	}
	for _, c := range *doc.Components {
		p, err := purl.FromString(c.PackageURL)
		if err != nil {
			continue
		}
		out := Component{Type: p.Type, Namespace: p.Namespace, Name: p.Name, Version: p.Version, Arch: p.Qualifiers.Map()["arch"], Layer: layer}
		if layer == "" && c.Properties != nil {
			for _, q := range *c.Properties {
				if q.Name == propLayer {
					out.Layer = q.Value
				}
			}
		}
		if c.Hashes != nil {
			for _, h := range *c.Hashes {
				if out.Integrity = integrity(h); out.Integrity != "" {
					break
				}
			}
		}
		b.Components = append(b.Components, out)
	}
	if doc.Properties != nil {
		for _, q := range *doc.Properties {
			if q.Name == propUnknown {
				b.Unknown = append(b.Unknown, q.Value)
			}
		}
	}
	return b, nil
}

func integrity(h cdx.Hash) string {
	raw, err := hex.DecodeString(h.Value)
	if err != nil {
		return ""
	}
	for alg, name := range hashNames {
		if name == h.Algorithm {
			return alg + "-" + base64.StdEncoding.EncodeToString(raw)
		}
	}
	return ""
}
