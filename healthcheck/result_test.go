package healthcheck

import (
	"encoding/json"
	"testing"
	"time"
)

func TestResultAsJSON(t *testing.T) {
	want := Result{Class: Timeout, Phase: "connect", Expected: "an answer", Found: "none", Advice: "look", Latency: 1500 * time.Microsecond}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(text); s != `{"class":"timeout","phase":"connect","expected":"an answer","found":"none","advice":"look","latency":"1.5ms"}` {
		t.Error(s)
	}
}
