package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// Counter is what an Applier may also be: it reads what the kernel has counted.
// *reconcile.Reconciler satisfies it.
type Counter interface {
	// Traffic reads the counters of all services and backends. It is called every
	// ten seconds.
	Traffic(context.Context) ([]lbstate.Traffic, error)
}

// Series is what an agent counted for a service, or for one of its backends.
type Series struct {
	Service string         `json:"service"`
	Backend netip.AddrPort `json:"backend,omitzero"` // zero: the service as a whole
	Samples []Sample       `json:"samples"`          // the oldest first
}

// Sample is what was counted within a time. Numbers above 2047 are exact to a
// thousandth.
type Sample struct {
	At          time.Time `json:"at"` // the end of the time, by the agent's clock
	Seconds     int       `json:"seconds"`
	Connections uint64    `json:"connections"`
	PacketsIn   uint64    `json:"packets_in"`
	PacketsOut  uint64    `json:"packets_out"`
	BytesIn     uint64    `json:"bytes_in"`
	BytesOut    uint64    `json:"bytes_out"`
	Active      uint64    `json:"active"` // connections established at the end
}

// Statistics is an agent's answer.
type Statistics struct {
	Series []Series `json:"series"`
	Cut    bool     `json:"cut,omitempty"` // there was more than an answer may hold: ask for a service, or a shorter time
}

// Reasons why there are no statistics of an agent.
var (
	ErrNotConnected = errors.New("the agent is not connected to this server")
	ErrNoStatistics = errors.New("the agent has no statistics")
	ErrBusy         = errors.New("the agent was asked a moment ago; ask again in a second")
)

const (
	featureStatistics = "statistics"
	askEvery          = time.Second // of one agent
	answerSamples     = 150_000     // of one answer, at most: about 3 MiB
	partSeries        = 16          // of one message: with 120 samples each, 60 KiB
	maxAnswer         = 8 << 20     // bytes that a server takes of one answer
)

// question is one that a server has asked an agent.
type question struct {
	id     uint64
	answer Statistics
	size   int
	done   chan struct{} // closed when err is set, or the answer is whole
	err    error
}

// Statistics asks an agent that is connected to this server for what it counted
// since a time, at most an hour ago: of one service with its backends, or with an
// empty name of all services without theirs.
func (s *Server) Statistics(ctx context.Context, name, service string, since time.Time) (Statistics, error) {
	s.mu.Lock()
	st := s.open[name]
	s.mu.Unlock()
	if st == nil {
		return Statistics{}, ErrNotConnected
	}
	q, err := st.ask(service, since)
	if err != nil {
		return Statistics{}, err
	}
	select {
	case <-q.done:
	case <-ctx.Done():
		st.answered(q, ctx.Err())
	}
	return q.answer, q.err
}

// ask sends a question, one at a time.
func (st *stream) ask(service string, since time.Time) (*question, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case !st.counts:
		return nil, ErrNoStatistics
	case st.over:
		return nil, ErrNotConnected
	case st.question != nil || time.Since(st.asked) < askEvery || st.sender != nil:
		return nil, ErrBusy
	}
	st.asked = time.Now()
	st.question = &question{id: uint64(st.asked.UnixNano()), done: make(chan struct{})}
	st.post(&agentpb.ServerMessage{Message: &agentpb.ServerMessage_Statistics{Statistics: &agentpb.StatisticsRequest{
		Id: st.question.id, Service: service, Since: since.Unix(),
	}}})
	return st.question, nil
}

// answered ends a question, if it has not ended yet.
func (st *stream) answered(q *question, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.settle(q, err)
}

// settle is answered, for a caller that holds mu.
func (st *stream) settle(q *question, err error) {
	if q == nil || st.question != q {
		return
	}
	st.question = nil
	if q.err = err; err != nil {
		q.answer = Statistics{}
	}
	close(q.done)
}

// counted takes a part of an answer. What nobody asked for, or no longer waits
// for, is dropped.
func (st *stream) counted(p *agentpb.StatisticsPart) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	q := st.question
	if q == nil || q.id != p.GetId() {
		return nil
	}
	if q.size += proto.Size(p); q.size > maxAnswer {
		return &farewell{agentpb.Bye_REFUSED, fmt.Sprintf("an answer of more than %d bytes", maxAnswer)}
	}
	if n := len(q.answer.Series) + len(p.GetSeries()); n > maxSeries {
		return &farewell{agentpb.Bye_REFUSED, fmt.Sprintf("an answer of %d series; at most %d are taken", n, maxSeries)}
	}
	for _, s := range p.GetSeries() {
		series, err := seriesFrom(s)
		if err != nil {
			return &farewell{agentpb.Bye_REFUSED, err.Error()}
		}
		q.answer.Series = append(q.answer.Series, series)
	}
	if p.GetRefused() != "" {
		st.settle(q, fmt.Errorf("%w: %s", ErrNoStatistics, clip(p.GetRefused())))
	} else if p.GetLast() {
		q.answer.Cut = p.GetCut()
		st.settle(q, nil)
	}
	return nil
}

func seriesFrom(p *agentpb.Series) (Series, error) {
	s := Series{Service: clip(p.GetService())}
	n := len(p.GetAt())
	for _, list := range [][]uint64{p.GetConnections(), p.GetPacketsIn(), p.GetPacketsOut(), p.GetBytesIn(), p.GetBytesOut(), p.GetActive()} {
		if len(list) != n {
			return s, fmt.Errorf("statistics of %d times have %d numbers", n, len(list))
		}
	}
	if len(p.GetSeconds()) != n || n > fineKept+coarseKept {
		return s, fmt.Errorf("statistics of %d times have %d lengths; at most %d are taken", n, len(p.GetSeconds()), fineKept+coarseKept)
	}
	if len(p.GetAddress()) > 0 {
		a, ok := netip.AddrFromSlice(p.GetAddress())
		if !ok || p.GetPort() > 65535 {
			return s, errors.New("statistics of a backend without an address")
		}
		s.Backend = netip.AddrPortFrom(a, uint16(p.GetPort()))
	}
	s.Samples = make([]Sample, n)
	for i := range s.Samples {
		s.Samples[i] = Sample{
			At: time.Unix(p.GetAt()[i], 0).UTC(), Seconds: int(p.GetSeconds()[i]), Connections: p.GetConnections()[i],
			PacketsIn: p.GetPacketsIn()[i], PacketsOut: p.GetPacketsOut()[i], BytesIn: p.GetBytesIn()[i], BytesOut: p.GetBytesOut()[i],
			Active: p.GetActive()[i],
		}
	}
	return s, nil
}

// countLoop reads the counters while the client runs.
func (c *Client) countLoop(ctx context.Context, from Counter) {
	tick := time.NewTicker(c.cfg.countEvery)
	defer tick.Stop()
	failed := false
	for {
		read, err := from.Traffic(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			c.counts.Lock()
			c.counted.take(time.Now(), read)
			c.counts.Unlock()
		} else if !failed {
			c.log.Warn("the kernel's counters cannot be read; statistics have a gap", zap.Error(err))
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// report is the answer to a question, in parts.
func (c *Client) report(q *agentpb.StatisticsRequest) (parts []*agentpb.AgentMessage) {
	add := func(p *agentpb.StatisticsPart) {
		p.Id = q.GetId()
		parts = append(parts, &agentpb.AgentMessage{Message: &agentpb.AgentMessage_Statistics{Statistics: p}})
	}
	c.counts.Lock()
	all, cut := c.counted.lookup(q.GetService(), time.Unix(q.GetSince(), 0), answerSamples)
	c.counts.Unlock()
	for len(all) > partSeries {
		add(&agentpb.StatisticsPart{Series: all[:partSeries]})
		all = all[partSeries:]
	}
	add(&agentpb.StatisticsPart{Series: all, Last: true, Cut: cut})
	return parts
}
