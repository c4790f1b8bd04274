package bolt_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/bolt"
)

// BenchmarkApply puts new records of 300 bytes, durably, from 1 and from 64 callers at a time.
func BenchmarkApply(b *testing.B) {
	value := []byte(strings.Repeat("x", 300))
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprint(writers, "-writers"), func(b *testing.B) {
			s := open(b, bolt.Config{Path: filepath.Join(b.TempDir(), "store.db")})
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						op := storage.Op{Kind: storage.Put, Table: "things", Key: fmt.Sprintf("%016x", uint64(i)*0x9E3779B97F4A7C15), Value: value}
						if _, err := s.Apply(b.Context(), op); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "applies/s")
		})
	}
}
