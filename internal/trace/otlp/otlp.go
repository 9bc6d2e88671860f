// Package otlp renders spans as OpenTelemetry does, and pushes them to a collector.
package otlp

import (
	"slices"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Resource names the server that made the spans.
type Resource struct {
	Service  string // "": chasquid
	Version  string
	Instance string // the host name
}

// sampled is the W3C flag of a trace that was recorded.
const sampled = 1

// Request renders spans as the request that exports them.
func Request(spans []trace.SpanData, res Resource) *collector.ExportTraceServiceRequest {
	if res.Service == "" {
		res.Service = "chasquid"
	}
	attrs := []*common.KeyValue{str("service.name", res.Service)}
	if res.Version != "" {
		attrs = append(attrs, str("service.version", res.Version))
	}
	if res.Instance != "" {
		attrs = append(attrs, str("service.instance.id", res.Instance))
	}
	scope := &tracepb.ScopeSpans{Scope: &common.InstrumentationScope{Name: "blitiri.com.ar/go/chasquid"}}
	for i := range spans {
		scope.Spans = append(scope.Spans, span(&spans[i]))
	}
	return &collector.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resource.Resource{Attributes: attrs},
		ScopeSpans: []*tracepb.ScopeSpans{scope},
	}}}
}

func span(d *trace.SpanData) *tracepb.Span {
	s := &tracepb.Span{
		TraceId:           slices.Clone(d.Trace[:]),
		SpanId:            slices.Clone(d.ID[:]),
		Flags:             sampled,
		Name:              d.Family.String(),
		Kind:              kind(d.Family),
		StartTimeUnixNano: nanos(d.Start),
		EndTimeUnixNano:   nanos(d.Start.Add(d.Duration)),
		Attributes:        []*common.KeyValue{str("chasquid.title", d.Title), num("chasquid.generation", d.Generation)},
	}
	if d.Parent != (trace.SpanID{}) {
		s.ParentSpanId = slices.Clone(d.Parent[:])
	}
	for _, a := range d.Attrs {
		s.Attributes = append(s.Attributes, str("chasquid."+a.Key, a.Value))
	}
	failure := ""
	for _, e := range d.Events {
		s.DroppedEventsCount += uint32(e.Gap)
		if e.Kind == trace.Error {
			failure = e.Text
		}
		s.Events = append(s.Events, &tracepb.Span_Event{TimeUnixNano: nanos(e.At), Name: e.Kind.String(),
			Attributes: []*common.KeyValue{str("message", e.Text)}})
	}
	for _, l := range d.Links {
		s.Links = append(s.Links, &tracepb.Span_Link{TraceId: slices.Clone(l.Trace[:]), SpanId: slices.Clone(l.Span[:]), Flags: sampled})
	}
	if d.Failed {
		s.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: failure}
	}
	return s
}

// kind is the part a family plays between systems, as the conventions for messaging have it.
func kind(f trace.Family) tracepb.Span_SpanKind {
	switch f {
	case trace.SMTPConn, trace.RPC:
		return tracepb.Span_SPAN_KIND_SERVER
	case trace.QueuePut:
		return tracepb.Span_SPAN_KIND_PRODUCER
	case trace.QueueItem:
		return tracepb.Span_SPAN_KIND_CONSUMER
	case trace.DeliveryRemote, trace.DNS, trace.STS:
		return tracepb.Span_SPAN_KIND_CLIENT
	}
	return tracepb.Span_SPAN_KIND_INTERNAL
}

func nanos(t time.Time) uint64 { return uint64(max(t.UnixNano(), 0)) }

func str(key, value string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: value}}}
}

func num(key string, value int64) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: value}}}
}
