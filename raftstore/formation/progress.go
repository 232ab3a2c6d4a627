package formation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Phase is how far a node has come.
type Phase string

const (
	// Forming: the node is in no cluster, and no one it can ask knows one.
	Forming Phase = "forming"
	// Joining: the node asks an existing cluster for a place.
	Joining Phase = "joining"
	// Spreading: the node is in its cluster; some founder may still lack the
	// founding record.
	Spreading Phase = "spreading"
	// Done: nothing is left to do.
	Done Phase = "done"
	// Stopped: only a person can go on; Problem says why.
	Stopped Phase = "stopped"
)

// Waiting is a server that a node waits for, and why.
type Waiting struct {
	Address string `json:"address"`
	Reason  string `json:"reason"`
}

// Progress says how far a node has come, and what it waits for.
type Progress struct {
	Phase   Phase     `json:"phase"`
	Cluster uint64    `json:"cluster"` // 0: none yet
	Waiting []Waiting `json:"waiting,omitempty"`
	Problem string    `json:"problem,omitempty"` // what a person should look at
}

// In reports whether the node belongs to a cluster.
func (p Progress) In() bool { return p.Phase == Spreading || p.Phase == Done }

// String is a sentence for people.
func (p Progress) String() string {
	var b strings.Builder
	b.WriteString(string(p.Phase))
	if p.Cluster != 0 {
		fmt.Fprintf(&b, ", cluster %x", p.Cluster)
	}
	for i, w := range p.Waiting {
		b.WriteString([]string{"; waiting: ", "; "}[min(i, 1)])
		b.WriteString(w.Address + " " + w.Reason)
	}
	if p.Problem != "" {
		b.WriteString("; " + p.Problem)
	}
	return b.String()
}

func (p Progress) equal(o Progress) bool {
	return p.Phase == o.Phase && p.Cluster == o.Cluster && p.Problem == o.Problem && slices.Equal(p.Waiting, o.Waiting)
}

// Progress returns how far the node has come.
func (n *Node) Progress() Progress {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.progress
	p.Waiting = slices.Clone(p.Waiting)
	return p
}

// logPause is the time after which progress that did not change is logged again.
const logPause = 10 * time.Second

// show sets the progress and logs it at a change and every ten seconds.
func (n *Node) show(p Progress) {
	now := time.Now()
	n.mu.Lock()
	due := !p.equal(n.progress) || now.Sub(n.logged) >= logPause
	n.progress = p
	if due {
		n.logged = now
	}
	n.mu.Unlock()
	if !due {
		return
	}
	fields := []zap.Field{zap.String("phase", string(p.Phase))}
	if p.Cluster != 0 {
		fields = append(fields, zap.String("cluster", fmt.Sprintf("%x", p.Cluster)))
	}
	for _, w := range p.Waiting {
		fields = append(fields, zap.String(w.Address, w.Reason))
	}
	if p.Problem != "" {
		n.log.Warn("formation: "+p.Problem, fields...)
		return
	}
	n.log.Info("formation", fields...)
}
