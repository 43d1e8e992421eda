//! What Prometheus is told to read: every pod by itself, at addresses that exist and that the policies let it reach.

use std::path::Path;

use serde_json::Value;

use super::{Manifests, Workload, items, matches, name_of, strings};
use crate::{Problem, yaml};

impl Manifests {
    /// The scrape configuration in each ConfigMap that has one.
    pub(super) fn scraped(&self, workloads: &[Workload<'_>], problems: &mut Vec<Problem>) {
        for (map, object) in self.of("ConfigMap") {
            let Some(text) = object.pointer("/data/prometheus.yaml").and_then(Value::as_str) else { continue };
            // What is no YAML is told by the check of the configuration files.
            let Ok(config) = yaml::value(Path::new("prometheus.yaml"), text) else { continue };
            let reads = |it: &&Workload<'_>| {
                let volumes = items(it.template.pointer("/spec/volumes"));
                volumes.into_iter().any(|it| it.pointer("/configMap/name").and_then(Value::as_str) == Some(map))
            };
            let readers: Vec<&Workload<'_>> = workloads.iter().filter(reads).collect();
            for job in items(config.get("scrape_configs")) {
                let at = format!(
                    "ConfigMap `{map}`, job `{}`",
                    job.get("job_name").and_then(Value::as_str).unwrap_or_default()
                );
                let targets = items(job.get("static_configs")).flat_map(|it| items(it.get("targets")));
                for target in targets.filter_map(Value::as_str) {
                    let Some((host, port)) = target.rsplit_once(':').filter(|(host, _)| *host != "localhost") else {
                        continue;
                    };
                    problems.extend(self.target(workloads, &readers, host, port.parse().unwrap_or(0), false, &at));
                }
                for found in items(job.get("dns_sd_configs")) {
                    let port = found.get("port").and_then(Value::as_u64).unwrap_or(0);
                    for host in items(found.get("names")).filter_map(Value::as_str) {
                        problems.extend(self.target(workloads, &readers, host, port, true, &at));
                    }
                }
            }
        }
    }

    /// What is wrong with one target; `each` says whether every address of the name is one.
    fn target(
        &self,
        workloads: &[Workload<'_>],
        readers: &[&Workload<'_>],
        host: &str,
        port: u64,
        each: bool,
        at: &str,
    ) -> Option<Problem> {
        let services = self.of("Service");
        let Some(service) = services.get(host) else {
            return Some(Problem::new(at, format!("`{host}` is no Service")));
        };
        let headless = service.pointer("/spec/clusterIP").and_then(Value::as_str) == Some("None");
        let selector = strings(service.pointer("/spec/selector"));
        let workload =
            workloads.iter().find(|it| it.runs_on() && !selector.is_empty() && matches(&selector, &it.labels()))?;
        let pods = self.most_pods(workload);
        let hint = "name a headless Service (clusterIP: None) in dns_sd_configs, with type A and the port";
        if each && !headless {
            let what = format!("`{host}` is not headless: its name has one address, not one for each pod");
            return Some(Problem::new(at, what).hint(hint));
        }
        if !each && pods > 1 {
            let what = format!("`{host}:{port}` is one address for up to {pods} pods: each time another one answers");
            return Some(Problem::new(at, what).hint(hint));
        }
        // A headless Service leads to the pods themselves, so its ports are those of the containers.
        let listed =
            items(service.pointer("/spec/ports")).find(|it| it.get("port").and_then(Value::as_u64) == Some(port));
        let target = listed.map(|it| it.get("targetPort").or(it.get("port")));
        let number = if headless {
            u16::try_from(port).ok()
        } else {
            target.flatten().and_then(|target| match target {
                Value::String(named) => workload.ports().find(|(name, _)| name == named).map(|(_, port)| port),
                number => number.as_u64().and_then(|it| u16::try_from(it).ok()),
            })
        };
        let offers = |number: u16| workload.ports().any(|(_, port)| port == number);
        let Some(number) = number.filter(|number| offers(*number)) else {
            return Some(Problem::new(at, format!("`{host}` does not offer port {port}")));
        };
        let blocked = readers.iter().find(|reader| !self.reaches(reader.name, workload.name, number))?;
        Some(Problem::new(at, format!("the policies do not let {} reach `{host}` at port {port}", blocked.at())))
    }
}

/// The first container of a workload that sees a variable, and the value.
pub(super) fn told<'a>(workload: &'a Workload<'_>, variable: &str) -> Option<&'a str> {
    let containers = workload.containers().flat_map(|container| items(container.get("env")));
    containers.into_iter().find(|it| name_of(it) == variable).and_then(|it| it.get("value")).and_then(Value::as_str)
}
