package countersign

// Nearest finds the known word that s is most likely a misspelling of, for the "did you mean" of errors; "" if none is
// near: more than a third of its letters would have to change.
func Nearest(s string, known []string) string {
	best, least := "", 0
	for _, word := range known {
		if d := editDistance(s, word); d <= max(1, len(word)/3) && (best == "" || d < least) {
			best, least = word, d
		}
	}
	return best
}

// editDistance counts changed, missing, additional and swapped neighbouring bytes (optimal string alignment): the words
// of interest are ASCII. Words of over 64 bytes are never near.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next[0] = i + 1
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next[j+1] = min(change, next[j]+1, row[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}
