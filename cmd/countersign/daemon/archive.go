package daemon

import (
	"io"
	"os"
)

// archiveMagic begins every backup.
const archiveMagic = "countersign backup 1\n"

// isBackup tells whether the file at path begins as a backup does.
func isBackup(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	begin := make([]byte, len(archiveMagic))
	_, err = io.ReadFull(f, begin)
	return err == nil && string(begin) == archiveMagic
}
