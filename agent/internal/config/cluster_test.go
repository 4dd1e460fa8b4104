package config

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestCluster(t *testing.T) {
	c, err := Parse("f", []byte(`cluster: {name: mx1, bind: "0.0.0.0:7946", advertise: 192.0.2.25, peers: [mx2.example.org, "192.0.2.26:7947", "[2001:db8::27]:7946"], key_file: /etc/mxshield/cluster.key, label: mx}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Cluster{"mx1", "0.0.0.0:7946", "192.0.2.25", []string{"mx2.example.org", "192.0.2.26:7947", "[2001:db8::27]:7946"}, "/etc/mxshield/cluster.key", "mx"}
	if !reflect.DeepEqual(c.Cluster, want) {
		t.Errorf("%+v", c.Cluster)
	}
	host, _ := os.Hostname()
	if c, err = Parse("f", []byte("cluster: {bind: 127.0.0.1}")); err != nil || c.Cluster.Name != host {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = Parse("f", []byte("cluster:\n")); err != nil || c.Cluster != nil {
		t.Errorf("%+v, %v", c, err)
	}
	const k = "key_file: /k"
	for _, f := range []struct{ src, says string }{
		{"cluster: {name: mx1, peers: [mx2]}", "key_file is missing"},
		{"cluster: {bind: 192.0.2.1}", "key_file is missing"},
		{"cluster: {bind: \"[::]:7946\"}", "key_file is missing"},
		{"cluster: {key_file: cluster.key}", "absolute"},
		{"cluster: {name: \"mx 1\", " + k + "}", "no name"},
		{"cluster: {label: \"a/b\", " + k + "}", "no label"},
		{"cluster: {bind: eth0, " + k + "}", "listen"},
		{"cluster: {bind: \"0.0.0.0:0\", " + k + "}", "port 0"},
		{"cluster: {advertise: mx1.example.org, " + k + "}", "no address"},
		{"cluster: {advertise: 0.0.0.0, " + k + "}", "no address"},
		{"cluster: {peers: [\"a b\"], " + k + "}", "no peer"},
		{"cluster: {peers: [a, a], " + k + "}", "twice"},
		{"cluster: {peers: [" + strings.Repeat("a,", 201) + "], " + k + "}", "too many"},
		{"cluster: {peer: [a]}", "peer"},
		{"cluster: mx1", ""},
	} {
		c, err := Parse("f", []byte(f.src))
		var e *Error
		if c != nil || !errors.As(err, &e) || e.Line != 1 || e.Hint == "" || !strings.Contains(err.Error(), f.says) {
			t.Errorf("%.60s: %v", f.src, err)
		}
	}
}
