package policy

// maxNesting is how deep brackets may stand in each other, and how much indentation and how many dashes may begin a line.
// A policy needs about ten.
const maxNesting = 200

// nesting tells the place where a document is nested deeper than any policy; 0, 0 if it is not. It runs before the parser,
// whose stack grows with the depth: a few KiB of brackets would cost MiB. It counts brackets in text and comments too,
// which are balanced in all that policies hold.
func nesting(doc []byte) (line, column int) {
	line, open, begin, indenting := 1, 0, 0, true
	for i, b := range doc {
		if b == '\n' {
			line, begin, indenting = line+1, i+1, true
			continue
		}
		switch b {
		case '[', '{':
			open++
		case ']', '}':
			open = max(open-1, 0)
		}
		indenting = indenting && (b == ' ' || b == '\t' || b == '-' || b == '?' || b == ':')
		if open > maxNesting || indenting && i-begin >= maxNesting {
			return line, i - begin + 1
		}
	}
	return 0, 0
}
