package otlp

import (
	"encoding/hex"
	"encoding/json"
	"strconv"

	"blitiri.com.ar/go/chasquid/internal/trace"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// The JSON of OTLP is that of protocol buffers (64-bit integers are strings, names are in camel case) but for ids, which are hexadecimal, and
// enumerations, which are numbers.
type (
	jsonRequest struct {
		ResourceSpans []jsonResource `json:"resourceSpans"`
	}
	jsonResource struct {
		Resource   jsonAttrs   `json:"resource"`
		ScopeSpans []jsonScope `json:"scopeSpans"`
	}
	jsonAttrs struct {
		Attributes []jsonAttr `json:"attributes,omitempty"`
	}
	jsonScope struct {
		Scope struct {
			Name string `json:"name"`
		} `json:"scope"`
		Spans []jsonSpan `json:"spans"`
	}
	jsonSpan struct {
		TraceID       string      `json:"traceId"`
		SpanID        string      `json:"spanId"`
		ParentSpanID  string      `json:"parentSpanId,omitempty"`
		Flags         uint32      `json:"flags"`
		Name          string      `json:"name"`
		Kind          int32       `json:"kind"`
		Start         string      `json:"startTimeUnixNano"`
		End           string      `json:"endTimeUnixNano"`
		Attributes    []jsonAttr  `json:"attributes,omitempty"`
		Events        []jsonEvent `json:"events,omitempty"`
		DroppedEvents uint32      `json:"droppedEventsCount,omitempty"`
		Links         []jsonLink  `json:"links,omitempty"`
		Status        *jsonStatus `json:"status,omitempty"`
	}
	jsonEvent struct {
		Time       string     `json:"timeUnixNano"`
		Name       string     `json:"name"`
		Attributes []jsonAttr `json:"attributes,omitempty"`
	}
	jsonLink struct {
		TraceID string `json:"traceId"`
		SpanID  string `json:"spanId"`
		Flags   uint32 `json:"flags"`
	}
	jsonStatus struct {
		Message string `json:"message,omitempty"`
		Code    int32  `json:"code"`
	}
	jsonAttr struct {
		Key   string    `json:"key"`
		Value jsonValue `json:"value"`
	}
	jsonValue struct {
		String *string `json:"stringValue,omitempty"`
		Int    *string `json:"intValue,omitempty"`
	}
)

// JSON renders spans as OTLP/JSON: an ExportTraceServiceRequest.
func JSON(spans []trace.SpanData, res Resource) ([]byte, error) {
	var out jsonRequest
	for _, rs := range Request(spans, res).ResourceSpans {
		r := jsonResource{Resource: jsonAttrs{attrs(rs.Resource.Attributes)}}
		for _, ss := range rs.ScopeSpans {
			var sc jsonScope
			sc.Scope.Name = ss.Scope.Name
			sc.Spans = make([]jsonSpan, len(ss.Spans))
			for i, s := range ss.Spans {
				sc.Spans[i] = spanJSON(s)
			}
			r.ScopeSpans = append(r.ScopeSpans, sc)
		}
		out.ResourceSpans = append(out.ResourceSpans, r)
	}
	return json.Marshal(out)
}

func spanJSON(s *tracepb.Span) jsonSpan {
	j := jsonSpan{TraceID: hex.EncodeToString(s.TraceId), SpanID: hex.EncodeToString(s.SpanId), ParentSpanID: hex.EncodeToString(s.ParentSpanId),
		Flags: s.Flags, Name: s.Name, Kind: int32(s.Kind), Start: decimal(s.StartTimeUnixNano), End: decimal(s.EndTimeUnixNano),
		Attributes: attrs(s.Attributes), DroppedEvents: s.DroppedEventsCount}
	for _, e := range s.Events {
		j.Events = append(j.Events, jsonEvent{decimal(e.TimeUnixNano), e.Name, attrs(e.Attributes)})
	}
	for _, l := range s.Links {
		j.Links = append(j.Links, jsonLink{hex.EncodeToString(l.TraceId), hex.EncodeToString(l.SpanId), l.Flags})
	}
	if s.Status != nil {
		j.Status = &jsonStatus{s.Status.Message, int32(s.Status.Code)}
	}
	return j
}

func attrs(kvs []*common.KeyValue) (out []jsonAttr) {
	for _, kv := range kvs {
		a := jsonAttr{Key: kv.Key}
		switch v := kv.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			a.Value.String = &v.StringValue
		case *common.AnyValue_IntValue:
			n := strconv.FormatInt(v.IntValue, 10)
			a.Value.Int = &n
		}
		out = append(out, a)
	}
	return out
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
