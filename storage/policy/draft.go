package policy

import countersign "github.com/countersign/countersign"

// Draft reads and checks a document as [Book.Apply] would, and changes and records nothing. What it gives has version 0
// and the services' present states. A document with faults is *[FaultsError].
func (b *Book) Draft(doc []byte) (*countersign.Policy, error) {
	p, faults := Parse(doc, b.env)
	if len(faults) > 0 {
		return nil, newFaultsError("the draft", faults)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return merge(p, b.states), nil
}
