// Opa_ext_authz answers Envoy's ext_authz questions with OPA, in process: what OPA's own Envoy plugin does. With -server
// it asks an OPA server instead, which then keeps the records.
//
// It is the peer of the benchmark `forward`, and made to be fast: the query is prepared once, data is kept as the
// evaluator's own values, an identity's facts are converted once, and records of decisions are buffered.
//
// The input is the document that Sallyport's policy sees (policies/rego/schemas/input.json). Who asks comes from the
// client certificate that Envoy verified (`source.principal`, its SPIFFE ID), facts about them from a file.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	kinds "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/uuid"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

const query = "data.sallyport.decision"

func main() {
	policy := flag.String("policy", "", "folder of Rego files")
	data := flag.String("data", "", "JSON file of OPA's data")
	facts := flag.String("facts", "", "JSON file: SPIFFE ID to the input's `identity`; and routes, name to prefix")
	socket := flag.String("socket", "", "Unix socket to listen on")
	remote := flag.String("server", "", "Unix socket of an OPA server to ask, instead of evaluating here")
	records := flag.String("records", "", "file for records of decisions; none are made when empty")
	flag.Parse()
	server, err := newServer(*policy, *data, *facts, *records)
	must(err)
	if *remote != "" {
		server.decide = atServer(*remote)
	}
	listener, err := net.Listen("unix", *socket)
	must(err)
	serving := grpc.NewServer()
	auth.RegisterAuthorizationServer(serving, server)
	must(serving.Serve(listener))
}

type server struct {
	query      rego.PreparedEvalQuery
	identities map[string]*ast.Term
	routes     map[string]*ast.Term // by prefix, such as /r1
	records    *records
	decide     func(context.Context, ast.Value) (map[string]any, error)
}

func newServer(policy, data, facts, file string) (*server, error) {
	stated := struct {
		Identities map[string]any    `json:"identities"`
		Routes     map[string]string `json:"routes"`
	}{}
	content := map[string]any{}
	if err := readJSON(facts, &stated); err != nil {
		return nil, err
	}
	if err := readJSON(data, &content); err != nil {
		return nil, err
	}
	s := &server{identities: map[string]*ast.Term{}, routes: map[string]*ast.Term{}}
	s.decide = s.evaluate
	for id, identity := range stated.Identities {
		value, err := ast.InterfaceToValue(identity)
		if err != nil {
			return nil, err
		}
		s.identities[id] = ast.NewTerm(value)
	}
	for name, prefix := range stated.Routes {
		s.routes[prefix] = ast.StringTerm(name)
	}
	return s, s.prepare(policy, content, file)
}

func (s *server) prepare(policy string, content map[string]any, file string) (err error) {
	store := inmem.NewFromObjectWithOpts(content, inmem.OptReturnASTValuesOnRead(true))
	options := []func(*rego.Rego){rego.Query(query), rego.Store(store)}
	modules, err := filepath.Glob(filepath.Join(policy, "*.rego"))
	if err != nil {
		return err
	}
	for _, path := range modules {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		options = append(options, rego.Module(path, string(text)))
	}
	if s.query, err = rego.New(options...).PrepareForEval(context.Background()); err != nil {
		return err
	}
	s.records, err = openRecords(file)
	return err
}

// Check implements Envoy's envoy.service.auth.v3.Authorization.
func (s *server) Check(ctx context.Context, asked *auth.CheckRequest) (*auth.CheckResponse, error) {
	now := time.Now()
	identity := s.identities[asked.GetAttributes().GetSource().GetPrincipal()]
	if identity == nil {
		return refused("identity_unknown"), nil
	}
	input := s.input(asked.GetAttributes().GetRequest().GetHttp(), identity, now)
	answer, err := s.decide(ctx, input)
	if err != nil {
		return refused("engine_failed"), nil
	}
	if err := s.records.add(now, input, answer); err != nil {
		return refused("decision_unrecorded"), nil
	}
	if allow, _ := answer["allow"].(bool); !allow {
		return refused(fmt.Sprint(answer["reasons"])), nil
	}
	return &auth.CheckResponse{Status: &status.Status{Code: int32(codes.OK)}}, nil
}

func (s *server) evaluate(ctx context.Context, input ast.Value) (map[string]any, error) {
	results, err := s.query.Eval(ctx, rego.EvalParsedInput(input))
	if err != nil || len(results) != 1 {
		return nil, fmt.Errorf("%d results: %w", len(results), err)
	}
	answer, _ := results[0].Expressions[0].Value.(map[string]any)
	return answer, nil
}

// atServer asks an OPA server for the decision, over connections that are kept.
func atServer(socket string) func(context.Context, ast.Value) (map[string]any, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 256}}
	return func(ctx context.Context, input ast.Value) (map[string]any, error) {
		body := strings.NewReader(`{"input":` + input.String() + `}`)
		asked, err := http.NewRequestWithContext(ctx, "POST", "http://opa/v1/data/sallyport/decision", body)
		if err != nil {
			return nil, err
		}
		answered, err := client.Do(asked)
		if err != nil {
			return nil, err
		}
		defer answered.Body.Close()
		found := struct {
			Result map[string]any `json:"result"`
		}{}
		if err := json.NewDecoder(answered.Body).Decode(&found); err != nil {
			return nil, err
		}
		_, err = io.Copy(io.Discard, answered.Body)
		return found.Result, err
	}
}

func (s *server) input(asked *auth.AttributeContext_HttpRequest, identity *ast.Term, now time.Time) ast.Value {
	path, rawQuery, _ := strings.Cut(asked.GetPath(), "?")
	host, _, _ := strings.Cut(strings.ToLower(asked.GetHost()), ":")
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	terms := make([]*ast.Term, len(segments))
	for i, segment := range segments {
		terms[i] = ast.StringTerm(segment)
	}
	request := ast.NewObject(
		[2]*ast.Term{ast.InternedTerm("method"), ast.StringTerm(asked.GetMethod())},
		[2]*ast.Term{ast.InternedTerm("action"), ast.StringTerm(actions[asked.GetMethod()])},
		[2]*ast.Term{ast.InternedTerm("host"), ast.StringTerm(host)},
		[2]*ast.Term{ast.InternedTerm("path"), ast.ArrayTerm(terms...)},
		[2]*ast.Term{ast.InternedTerm("query"), ast.ArrayTerm(pairs(rawQuery)...)},
		[2]*ast.Term{ast.InternedTerm("upgrade"), ast.StringTerm("")},
	)
	return ast.NewObject(
		[2]*ast.Term{ast.InternedTerm("now"), ast.NumberTerm(json.Number(fmt.Sprint(now.Unix())))},
		[2]*ast.Term{ast.InternedTerm("identity"), identity},
		[2]*ast.Term{ast.InternedTerm("route"), s.route(path)},
		[2]*ast.Term{ast.InternedTerm("request"), ast.NewTerm(request)},
		[2]*ast.Term{ast.InternedTerm("staleness"), ast.InternedTerm("fresh")},
	)
}

var actions = map[string]string{"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch",
	"DELETE": "delete"}

func pairs(raw string) []*ast.Term {
	found := []*ast.Term{}
	for _, part := range strings.Split(raw, "&") {
		if part != "" {
			name, value, _ := strings.Cut(part, "=")
			found = append(found, ast.ArrayTerm(ast.StringTerm(name), ast.StringTerm(value)))
		}
	}
	return found
}

// route is that of the longest prefix, by whole segments.
func (s *server) route(path string) *ast.Term {
	for prefix := path; prefix != ""; prefix = prefix[:strings.LastIndexByte(prefix, '/')] {
		if name, ok := s.routes[prefix]; ok {
			return name
		}
	}
	return ast.InternedTerm("")
}

func refused(why string) *auth.CheckResponse {
	return &auth.CheckResponse{
		Status: &status.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{
			Status: &kinds.HttpStatus{Code: kinds.StatusCode_Forbidden},
			Headers: []*core.HeaderValueOption{
				{Header: &core.HeaderValue{Key: "content-type", Value: "text/plain"}},
			},
			Body: why,
		}},
	}
}

// records are lines of JSON, one a decision, with the kernel within 10 ms.
type records struct {
	lock   sync.Mutex
	buffer *bufio.Writer
}

func openRecords(file string) (*records, error) {
	if file == "" {
		return nil, nil
	}
	opened, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	r := &records{buffer: bufio.NewWriterSize(opened, 256<<10)}
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			r.lock.Lock()
			r.buffer.Flush()
			r.lock.Unlock()
		}
	}()
	return r, nil
}

func (r *records) add(now time.Time, input ast.Value, answer map[string]any) error {
	if r == nil {
		return nil
	}
	result, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	line := fmt.Appendf(nil, `{"decision_id":"%s","timestamp":"%s","path":"sallyport/decision","input":%s,"result":%s}`,
		uuid.New(), now.UTC().Format(time.RFC3339Nano), input, result)
	r.lock.Lock()
	defer r.lock.Unlock()
	_, err = r.buffer.Write(append(line, '\n'))
	return err
}

func readJSON(path string, into any) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	decoder := json.NewDecoder(file)
	decoder.UseNumber()
	return decoder.Decode(into)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "opa_ext_authz:", err)
		os.Exit(2)
	}
}
