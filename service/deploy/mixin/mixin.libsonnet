// The same dashboards and rules for those who vendor mixins. Nothing is written twice: it reads the
// files that docker-compose mounts.
//
//   local gradwatch = (import 'service/deploy/mixin/mixin.libsonnet') + {
//     _config+:: { runbookURLPattern: 'https://runbooks.example.org/%s' },
//   };
{
  _config+:: {
    // %s becomes the path of the runbook in this repository.
    runbookURLPattern: '%s',
  },

  grafanaDashboards+:: {
    'gradwatch-fleet.json': import '../grafana/dashboards/gradwatch-fleet.json',
    'gradwatch-run.json': import '../grafana/dashboards/gradwatch-run.json',
    'gradwatch-layers.json': import '../grafana/dashboards/gradwatch-layers.json',
    'gradwatch-service.json': import '../grafana/dashboards/gradwatch-service.json',
  },

  local withRunbook(rule) = rule {
    annotations+: { runbook_url: $._config.runbookURLPattern % super.runbook_url },
  },
  local alerts(text) = [
    group { rules: [withRunbook(rule) for rule in group.rules] }
    for group in std.parseYaml(text).groups
  ],

  prometheusAlerts+:: {
    groups+: alerts(importstr '../rules/runs.yml') + alerts(importstr '../rules/service.yml'),
  },

  prometheusRules+:: std.parseYaml(importstr '../rules/recording.yml'),
}
