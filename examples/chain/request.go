package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// hop is what one service knows of a request, and what it got from the next.
type hop struct {
	Service     string   `json:"service"`
	Runs        string   `json:"runs"`
	Caller      string   `json:"caller"` // ID
	User        string   `json:"user"`
	Scopes      []string `json:"scopes"`
	Chain       []string `json:"chain"` // IDs, the nearest first
	Transaction string   `json:"transaction"`
	KID         string   `json:"kid"` // of the token; orders tells it
	Error       string   `json:"error"`
	Next        *hop     `json:"next"`
}

// expected is what each service must know of ana's request: who it is for, who calls, what may be done, and who was there before.
var expected = []struct {
	service, scope string
	chain          []string // the nearest first
}{
	{orders, "orders:read", []string{gateway}},
	{inventory, "stock:read", []string{orders, gateway}},
	{warehouse, "shelf:read", []string{inventory, orders, gateway}},
}

// call sends ana's request to the gateway, as the client app does.
func (c *chain) call(ctx context.Context, token string) (*hop, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.addresses[gateway]+paths[gateway], nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := c.app.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }() // only read from
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, &refusal{response.StatusCode, string(bytes.TrimSpace(body))}
	}
	var first hop
	if err := json.Unmarshal(body, &first); err != nil {
		return nil, fmt.Errorf("the answer: %w", err)
	}
	return &first, check(&first)
}

// refusal is an answer of the chain that is not 200.
type refusal struct {
	status int
	body   string
}

func (r *refusal) Error() string { return fmt.Sprintf("%d: %s", r.status, r.body) }

// check holds what the services know of a request to what it is.
func check(first *hop) error {
	at := first
	for _, want := range expected {
		if at == nil {
			return fmt.Errorf("the request did not come to %s", want.service)
		}
		var ids []string
		for _, name := range want.chain {
			ids = append(ids, id(name))
		}
		switch {
		case at.Service != want.service || at.Error != "":
			return fmt.Errorf("at %s: service %q, error %q", want.service, at.Service, at.Error)
		case at.User != user:
			return fmt.Errorf("at %s the user is %q", want.service, at.User)
		case at.Caller != ids[0] || !slices.Equal(at.Chain, ids):
			return fmt.Errorf("at %s the caller is %q, the chain %q", want.service, at.Caller, at.Chain)
		case !slices.Equal(at.Scopes, []string{want.scope}):
			return fmt.Errorf("at %s the scopes are %q", want.service, at.Scopes)
		case at.Transaction == "" || at.Transaction != first.Transaction:
			return fmt.Errorf("at %s the transaction is %q, not %q", want.service, at.Transaction, first.Transaction)
		}
		at = at.Next
	}
	if at != nil {
		return fmt.Errorf("the request went on to %q", at.Service)
	}
	return nil
}

func id(service string) string { return "spiffe://" + trustDomain + "/" + service }

func names(ids []string) string {
	var short []string
	for _, id := range ids {
		short = append(short, strings.TrimPrefix(id, "spiffe://"+trustDomain+"/"))
	}
	return strings.Join(short, " <- ")
}

// request sends one and shows the result.
func (c *chain) request(ctx context.Context) error {
	token, err := c.login(ctx)
	if err != nil {
		return err
	}
	first, err := c.call(ctx, token)
	if err != nil {
		return err
	}
	c.line("client app", "GET %s with ana's token of the provider", c.addresses[gateway]+paths[gateway])
	for at := first; at != nil; at = at.Next {
		c.line("at "+at.Service, "user %s, may %s, came by %-32s (%s)", at.User, strings.Join(at.Scopes, " "), names(at.Chain), at.Runs)
	}
	c.line("transaction", "%s, the same at all of them", first.Transaction)
	c.say("   warehouse, at the end, knows that it is ana who asks, and every service that her request came through; yet it can do nothing\n" +
		"   more for her than shelf:read, and nobody but inventory can reach it.")
	return nil
}
