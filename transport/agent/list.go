package agent

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// List answers once with the whole view.
func (sv *service) List(ctx context.Context, r *agentpb.ListRequest) (*agentpb.ListResponse, error) {
	s := sv.server
	if err := checkHello(&agentpb.Hello{Name: r.GetName(), Labels: r.GetLabels(), Features: r.GetFeatures()}); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.ready(ctx); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	hello := Hello{Name: r.GetName(), Labels: r.GetLabels(), Cluster: r.GetCluster(), Revision: r.GetRevision()}
	if _, err := s.admit(ctx, &hello); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	labels, err := s.selecting(ctx, hello)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	select { // each reads the whole state
	case s.lists <- struct{}{}:
		defer func() { <-s.lists }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	u, err := s.cfg.Store.Watch(lbstate.WatchOptions{Labels: labels}).Next(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	answer := &agentpb.ListResponse{Cluster: s.cfg.Cluster(), Revision: u.Revision}
	for _, v := range u.Services {
		answer.Digest += pairDigest(v.Name, v.Version)
		answer.Services = append(answer.Services, lbstate.Desired(v).Proto())
	}
	if p := u.Profile; p != nil && hasProfiles(r.GetFeatures()) {
		answer.Profile = p.Desired().Proto()
		answer.Digest += profileDigest(p.Name, p.Revision)
	}
	if r.GetCluster() == answer.Cluster && r.GetDigest() == answer.Digest && r.GetRevision() > 0 {
		answer.Unchanged, answer.Services, answer.Profile = true, nil, nil
	}
	return answer, nil
}
