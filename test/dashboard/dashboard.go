// Package dashboard makes the shipped Grafana dashboard, so that it is written down once, in a form people can read.
package dashboard

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Path is where the dashboard is kept, from the top of the tree.
const Path = "monitoring/dashboard.json"

// Row is one row of panels.
type Row struct {
	Title  string
	Panels []Panel
}

// Panel is one picture.
type Panel struct {
	Title  string
	Kind   Kind
	Unit   string // as Grafana names it
	Normal string // what is normal, for who has never seen it
	Width  int    // of 24; 0: the default of the kind
	Page   string // of the monitoring server: what to look at next
	Warn   float64
	Bad    float64 // 0: no colours; less than Warn: low is bad
	Stack  bool
	Query  []Query
}

// Query is one expression; SEL in it stands for the labels of what was chosen above the dashboard.
type Query struct {
	Expr      string
	Legend    string
	Exemplars bool
}

// Kind is how a panel looks.
type Kind string

// The kinds.
const (
	Stat    Kind = "stat"
	Lines   Kind = "timeseries"
	Heatmap Kind = "heatmap"
)

// selector is what SEL stands for.
const selector = `job=~"$job", instance=~"$instance"`

// Expression is the query as Grafana gets it.
func (q Query) Expression() string { return strings.ReplaceAll(q.Expr, "SEL", selector) }

// JSON renders the dashboard.
func JSON() ([]byte, error) {
	var panels []any
	id, y := 0, 0
	next := func() int { id++; return id }
	for _, r := range Rows {
		panels = append(panels, obj{"id": next(), "type": "row", "title": r.Title, "collapsed": false, "panels": list{}, "gridPos": grid(0, y, 24, 1)})
		y++
		x, height := 0, 0
		for _, p := range r.Panels {
			w, h := p.size()
			if x+w > 24 {
				x, y, height = 0, y+height, 0
			}
			panels = append(panels, p.render(next(), grid(x, y, w, h)))
			x, height = x+w, max(height, h)
		}
		y += height
	}
	b, err := json.MarshalIndent(obj{
		"uid": "chasquid", "title": "chasquid", "tags": list{"mail"}, "schemaVersion": 39, "version": 1, "editable": true, "timezone": "browser",
		"description":  "One mail server, or several. Each panel says in its description what is normal.",
		"time":         obj{"from": "now-6h", "to": "now"},
		"refresh":      "30s",
		"graphTooltip": 1,
		"templating":   obj{"list": variables()},
		"annotations":  obj{"list": annotations()},
		"links":        list{obj{"type": "link", "title": "the server's own pages", "url": "http://$instance/", "targetBlank": true}},
		"panels":       panels,
	}, "", " ")
	return append(b, '\n'), err
}

type (
	obj  = map[string]any
	list = []any
)

// source is the data source that is chosen above the dashboard.
func source() obj { return obj{"type": "prometheus", "uid": "${datasource}"} }

func grid(x, y, w, h int) obj { return obj{"x": x, "y": y, "w": w, "h": h} }

func (p *Panel) size() (w, h int) {
	w, h = 8, 8
	if p.Kind == Stat {
		w, h = 3, 4
	}
	if p.Width > 0 {
		w = p.Width
	}
	return w, h
}

func (p *Panel) render(id int, pos obj) obj {
	var targets list
	for i, q := range p.Query {
		t := obj{"refId": string(rune('A' + i)), "datasource": source(), "editorMode": "code", "expr": q.Expression(), "legendFormat": q.Legend, "range": p.Kind != Stat}
		if p.Kind == Stat {
			t["instant"] = true
		}
		if p.Kind == Heatmap {
			t["format"] = "heatmap"
		}
		if q.Exemplars {
			t["exemplar"] = true
		}
		targets = append(targets, t)
	}
	o := obj{"id": id, "type": string(p.Kind), "title": p.Title, "description": p.Normal, "gridPos": pos, "datasource": source(), "targets": targets,
		"fieldConfig": obj{"defaults": p.defaults(), "overrides": list{}}, "options": p.options()}
	if p.Page != "" {
		o["links"] = list{obj{"title": "what the server says: " + p.Page, "url": "http://$instance" + p.Page, "targetBlank": true}}
	}
	return o
}

// defaults are the unit, the colours and how lines are drawn.
func (p *Panel) defaults() obj {
	d := obj{"unit": p.Unit}
	if p.Kind == Stat || p.Bad != 0 {
		d["color"], d["thresholds"] = obj{"mode": "thresholds"}, obj{"mode": "absolute", "steps": p.steps()}
	}
	if p.Kind == Lines {
		custom := obj{"fillOpacity": 10, "showPoints": "never", "lineWidth": 1, "spanNulls": false}
		if p.Stack {
			custom["stacking"], custom["fillOpacity"] = obj{"mode": "normal", "group": "A"}, 60
		}
		d["custom"], d["min"], d["color"] = custom, 0, obj{"mode": "palette-classic"}
	}
	return d
}

// steps are the colours: green, yellow from Warn and red from Bad, or the other way round if low is bad.
func (p *Panel) steps() list {
	step := func(color string, from any) obj { return obj{"color": color, "value": from} }
	switch {
	case p.Warn == 0 && p.Bad == 0:
		return list{step("green", nil)}
	case p.Bad < p.Warn:
		return list{step("red", nil), step("yellow", p.Bad), step("green", p.Warn)}
	}
	return list{step("green", nil), step("yellow", p.Warn), step("red", p.Bad)}
}

func (p *Panel) options() obj {
	switch p.Kind {
	case Stat:
		return obj{"colorMode": "background", "graphMode": "none", "textMode": "value_and_name", "reduceOptions": obj{"calcs": list{"lastNotNull"}}}
	case Heatmap:
		return obj{"calculate": false, "yAxis": obj{"unit": p.Unit}, "color": obj{"scheme": "Oranges", "mode": "scheme"}, "cellGap": 1, "tooltip": obj{"mode": "single"}}
	}
	return obj{"legend": obj{"displayMode": "list", "placement": "bottom"}, "tooltip": obj{"mode": "multi", "sort": "desc"}}
}

// variables are what is chosen above the dashboard.
func variables() list {
	values := func(name, query string) obj {
		return obj{"name": name, "type": "query", "label": name, "datasource": source(), "query": obj{"query": query, "refId": name}, "definition": query,
			"refresh": 2, "sort": 1, "multi": true, "includeAll": true, "current": obj{"text": "All", "value": "$__all"}}
	}
	return list{
		obj{"name": "datasource", "type": "datasource", "label": "data source", "query": "prometheus", "current": obj{}},
		values("job", "label_values(chasquid_build_info, job)"),
		values("instance", `label_values(chasquid_build_info{job=~"$job"}, instance)`),
	}
}

// annotations mark the starts, with the version that was started, and the alerts.
func annotations() list {
	return list{
		obj{"name": "starts", "enable": true, "iconColor": "blue", "datasource": source(), "expr": Annotations[0], "useValueForTime": "on",
			"titleFormat": "{{instance}} started", "textFormat": "{{version}}", "step": "60s"},
		obj{"name": "alerts", "enable": true, "iconColor": "red", "datasource": source(), "expr": Annotations[1],
			"titleFormat": "{{alertname}}", "textFormat": "{{instance}} {{severity}}", "step": "60s"},
	}
}

// Annotations are the expressions of the marks.
var Annotations = []string{
	fmt.Sprintf("process_start_time_seconds{%s} * on (job, instance) group_left (version) chasquid_build_info{%s} * 1000", selector, selector),
	fmt.Sprintf(`ALERTS{alertname=~"Chasquid.*", alertstate="firing", %s}`, selector),
}
