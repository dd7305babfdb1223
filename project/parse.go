package project

// ParseHeader reads the frozen fields of faas.yml and ignores everything
// else. Its error is [Problems].
func ParseHeader(data []byte) (Header, error) {
	return Header{}, Problems{{Code: CodeSyntax, Why: "not read yet"}}
}

// Parse reads faas.yml, checks it as a whole and merges it for one
// environment. Its error is [Problems]: all that is wrong, at once.
func Parse(data []byte, o Options) (*Project, error) {
	return nil, Problems{{Code: CodeSyntax, Why: "not read yet"}}
}

// Origins says where every merged value came from, in the order of the file:
// what the file wrote, and what the platform filled in.
func (p *Project) Origins() []Origin { return p.origins }
