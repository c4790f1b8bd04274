package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The commands for the database are refused while a daemon has it; a sound one is sound, before and after it is compacted, and its
// daemon starts; a damaged one, or one whose audit log was cut, is exit code 4, and no compaction touches it.
func TestDB(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	for _, command := range []string{"check", "stats", "compact"} {
		if got := refused(t, exitCondition, "db", command, "--dir", i.dir); !strings.Contains(got.Why, "held by pid") || !strings.Contains(got.Next, "stop the daemon") {
			t.Errorf("%s: %+v", command, got)
		}
	}
	i.apply(t, "trust_domain: shop.internal\nservices: [{name: orders}]\n")
	orders := i.join(t, "orders")
	i.stop(t, syscall.SIGTERM)

	var sound, after shownCheck
	i.ask(t, &sound, "db", "check")
	if !sound.OK || sound.Audit.Stored != sound.Audit.Log || sound.Audit.Log.Seq == 0 || sound.Records < 10 {
		t.Errorf("%+v", sound)
	}
	i.run(t, "db", "compact")
	i.ask(t, &after, "db", "check")
	if !after.OK || after.Records != sound.Records || after.Bytes != sound.Bytes || after.FileBytes > sound.FileBytes || after.FreePages > sound.FreePages {
		t.Errorf("before %+v\nafter %+v", sound, after)
	}
	i.start(t)
	i.run(t, "cert", "renew", "--out", orders)
	i.stop(t, syscall.SIGTERM)

	segments, err := filepath.Glob(filepath.Join(i.dir, "audit", "*.segment"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	log := mustRead(t, segments[len(segments)-1])
	mustWrite(t, segments[len(segments)-1], log[:len(log)/2000])
	if got := refused(t, exitCondition, "db", "check", "--dir", i.dir); got.Code == "" || !strings.Contains(got.Why, "audit log") {
		t.Errorf("a log that was cut: %+v", got)
	}
	database := filepath.Join(i.dir, "countersign.db")
	if err := os.Truncate(database, 8192); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"check", "compact"} {
		refused(t, exitCondition, "db", command, "--dir", i.dir)
	}
	if left, err := filepath.Glob(database + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left is %v", left)
	}
	refused(t, exitLocal, "db", "check", "--dir", t.TempDir())
}
