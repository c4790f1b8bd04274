package local

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countersign/countersign/ca/identity"
)

// StreamSecrets is the state-of-the-world protocol: the client names what it wants, gets it, and again when it changes.
func (d *secrets) StreamSecrets(stream secret.SecretDiscoveryService_StreamSecretsServer) error {
	ctx := stream.Context()
	id, err := servedOf(ctx)
	if err != nil {
		return err
	}
	state := sotw{}
	return follow(ctx, id, stream.Recv, stream.Send, state.next, func(rq *discovery.DiscoveryRequest) error {
		if err := checkSubscription(rq.GetTypeUrl(), rq.GetResourceNames()); err != nil {
			return err
		}
		if refused := state.take(rq); refused != "" {
			d.server.log.Warn("local API: Envoy refused secrets", "identity", id.name, "version", refused, "code", rq.GetErrorDetail().GetCode())
		}
		return nil
	})
}

// follow is the life of a stream of either protocol: each request is minded by take, and whenever something may have changed
// next says what is to be sent; nil: nothing.
func follow[Request, Response any](ctx context.Context, id *served, recv func() (*Request, error), send func(*Response) error,
	next func(*identity.Identity) (*Response, error), take func(*Request) error) error {
	requests, failed := receive(ctx, recv)
	for {
		changed := id.source.Changed()
		if now, err := id.source.Identity(); err == nil {
			response, err := next(now)
			if err == nil && response != nil {
				err = send(response)
			}
			if err != nil {
				return err
			}
		}
		select {
		case rq := <-requests:
			if err := take(rq); err != nil {
				return err
			}
		case err := <-failed:
			return streamEnd(err)
		case <-changed:
		case <-id.stopping:
			return stopped()
		case <-ctx.Done():
			return ended(ctx)
		}
	}
}

func streamEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// sotw is the state of one state-of-the-world stream. Its decisions are pure.
type sotw struct {
	subscribed bool
	names      []string
	due        bool // what is subscribed was changed by the client since the last response
	sent       string
	nonce      nonce
}

// take minds one request: a subscription, the acknowledgement of the last response, or its refusal, whose version it tells.
// What answers an older response is over already and changes nothing (xDS protocol, ACK and resource type instance version).
func (s *sotw) take(rq *discovery.DiscoveryRequest) (refused string) {
	if n := rq.GetResponseNonce(); s.nonce > 0 && n != "" && n != s.nonce.String() {
		return ""
	}
	names := slices.Compact(slices.Sorted(slices.Values(rq.GetResourceNames())))
	if !s.subscribed || !slices.Equal(names, s.names) {
		s.subscribed, s.names, s.due = true, names, true
	}
	if rq.GetErrorDetail() != nil && s.nonce > 0 {
		return s.sent // not sent again before it is another
	}
	return ""
}

// next is what to send now, nil for nothing. A response without resources is none: Envoy waits for what there is not yet.
func (s *sotw) next(now *identity.Identity) (*discovery.DiscoveryResponse, error) {
	if !s.subscribed {
		return nil, nil
	}
	all, version, err := resourcesOf(now, s.names)
	if err != nil || len(all) == 0 || !s.due && version == s.sent {
		return nil, err
	}
	s.due, s.sent = false, version
	s.nonce++
	return &discovery.DiscoveryResponse{VersionInfo: version, TypeUrl: secretType, Resources: contents(all), Nonce: s.nonce.String()}, nil
}

// DeltaSecrets is the incremental protocol: only what is new or changed is sent.
func (d *secrets) DeltaSecrets(stream secret.SecretDiscoveryService_DeltaSecretsServer) error {
	ctx := stream.Context()
	id, err := servedOf(ctx)
	if err != nil {
		return err
	}
	state := delta{}
	return follow(ctx, id, stream.Recv, stream.Send, state.next, func(rq *discovery.DeltaDiscoveryRequest) error {
		if err := checkSubscription(rq.GetTypeUrl(), slices.Concat(rq.GetResourceNamesSubscribe(), rq.GetResourceNamesUnsubscribe())); err != nil {
			return err
		}
		if err := state.take(rq); err != nil {
			return err
		}
		if rq.GetErrorDetail() != nil {
			d.server.log.Warn("local API: Envoy refused secrets", "identity", id.name, "code", rq.GetErrorDetail().GetCode())
		}
		return nil
	})
}

// delta is the state of one incremental stream. Its decisions are pure.
type delta struct {
	begun bool
	sent  map[string]string // name: version that the client has, "" none
	nonce nonce
}

// take minds one request. The first one of a stream without names means what no names mean elsewhere.
func (s *delta) take(rq *discovery.DeltaDiscoveryRequest) error {
	subscribe := rq.GetResourceNamesSubscribe()
	if !s.begun {
		s.begun, s.sent = true, map[string]string{}
		if len(subscribe) == 0 || slices.Equal(subscribe, []string{"*"}) {
			subscribe = []string{nameOwn, nameRoots}
		}
		for _, name := range subscribe {
			s.sent[name] = rq.GetInitialResourceVersions()[name]
		}
	} else {
		for _, name := range subscribe {
			s.sent[name] = "" // sent also if it was before: the client may have dropped it
		}
	}
	for _, name := range rq.GetResourceNamesUnsubscribe() {
		delete(s.sent, name)
	}
	if len(s.sent) > maxNames {
		return status.Errorf(codes.InvalidArgument, "at most %d names are taken", maxNames)
	}
	return nil
}

// next is what to send now, nil for nothing.
func (s *delta) next(now *identity.Identity) (*discovery.DeltaDiscoveryResponse, error) {
	if len(s.sent) == 0 {
		return nil, nil
	}
	all, version, err := resourcesOf(now, slices.Sorted(maps.Keys(s.sent)))
	if err != nil {
		return nil, err
	}
	var fresh []*discovery.Resource
	for _, r := range all {
		if s.sent[r.name] != r.version {
			s.sent[r.name] = r.version
			fresh = append(fresh, &discovery.Resource{Name: r.name, Version: r.version, Resource: r.any})
		}
	}
	if len(fresh) == 0 {
		return nil, nil
	}
	s.nonce++
	return &discovery.DeltaDiscoveryResponse{SystemVersionInfo: version, TypeUrl: secretType, Resources: fresh, Nonce: s.nonce.String()}, nil
}
