//! Who waits for whom and who reaches whom, as text for Graphviz and as a picture.
//!
//! The picture is laid out here, by longest path from the services that wait for nothing: the documentation is built
//! without Graphviz, and the same project draws the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::compose::{Condition, Project, Service};

/// The graph of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    /// Services by name; jobs end.
    pub services: BTreeMap<String, Node>,
    /// `(who, what it waits for, until when)`.
    pub waits: BTreeSet<(String, String, Condition)>,
}

/// A service in the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its networks.
    pub networks: BTreeSet<String>,
    /// Whether it is a job.
    pub job: bool,
    /// Whether a port of it is published.
    pub published: bool,
}

/// The graph of a project's services, without those of profiles that are not asked for.
pub fn of(project: &Project, profiles: &BTreeSet<String>) -> Graph {
    let chosen = |service: &Service| service.profiles.is_empty() || !service.profiles.is_disjoint(profiles);
    let services: BTreeMap<String, Service> =
        project.services().into_iter().filter(|(_, service)| chosen(service)).collect();
    let waits = services
        .values()
        .flat_map(|service| service.depends_on.iter().map(|(on, until)| (service.name.clone(), on.clone(), *until)))
        .filter(|(_, on, _)| services.contains_key(on))
        .collect();
    let node = |service: &Service| Node {
        networks: service.networks.clone(),
        job: service.is_job(),
        published: !service.ports.is_empty(),
    };
    Graph { services: services.iter().map(|(name, service)| (name.clone(), node(service))).collect(), waits }
}

impl Graph {
    /// Pairs that share a network, each once, in alphabetical order: who can reach whom at all.
    pub fn reachable(&self) -> BTreeSet<(String, String)> {
        let mut pairs = BTreeSet::new();
        for (a, one) in &self.services {
            for (b, two) in self.services.range::<String, _>((std::ops::Bound::Excluded(a), std::ops::Bound::Unbounded))
            {
                if !one.networks.is_disjoint(&two.networks) {
                    pairs.insert((a.clone(), b.clone()));
                }
            }
        }
        pairs
    }

    /// A cycle of waiting, if there is one: nothing on it could ever start.
    pub fn cycle(&self) -> Option<Vec<String>> {
        let mut done = BTreeSet::new();
        for start in self.services.keys() {
            let mut path = Vec::new();
            if let Some(cycle) = self.walk(start, &mut path, &mut done) {
                return Some(cycle);
            }
        }
        None
    }

    fn walk<'a>(&'a self, at: &'a str, path: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> Option<Vec<String>> {
        if let Some(from) = path.iter().position(|name| *name == at) {
            return Some(path[from..].iter().chain([&at]).map(|name| (*name).to_owned()).collect());
        }
        if done.contains(at) {
            return None;
        }
        path.push(at);
        for (_, on, _) in self.waits.iter().filter(|(who, _, _)| who == at) {
            if let Some(cycle) = self.walk(on, path, done) {
                return Some(cycle);
            }
        }
        path.pop();
        done.insert(at);
        None
    }

    /// Text for Graphviz.
    pub fn dot(&self) -> String {
        let mut out = String::from("digraph services {\n  rankdir=LR;\n  node [shape=box, style=rounded];\n");
        for (name, node) in &self.services {
            let networks = node.networks.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let shape = if node.job { ", shape=oval" } else { "" };
            let border = if node.published { ", penwidth=2" } else { "" };
            let _ = writeln!(out, "  \"{name}\" [label=\"{name}\\n{networks}\"{shape}{border}];");
        }
        for (who, on, until) in &self.waits {
            let style = match until {
                Condition::Healthy => "solid",
                Condition::Completed => "dashed",
                Condition::Started => "dotted",
            };
            let _ = writeln!(out, "  \"{who}\" -> \"{on}\" [style={style}];");
        }
        out.push_str("}\n");
        out
    }

    /// A picture: columns by how many others must be up before, a line for each wait.
    pub fn svg(&self) -> String {
        const WIDTH: usize = 150;
        const HEIGHT: usize = 46;
        const COLUMN: usize = 215;
        const ROW: usize = 66;
        let columns = self.columns();
        let mut places: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for (name, column) in &columns {
            let row = counts.entry(*column).or_default();
            places.insert(name, (20 + column * COLUMN, 20 + *row * ROW));
            *row += 1;
        }
        let width = 40 + columns.values().max().copied().unwrap_or(0) * COLUMN + WIDTH;
        let height = 30 + counts.values().max().copied().unwrap_or(0) * ROW + 30;

        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<title>Services and what each waits for</title>\n<rect width=\"{width}\" \
             height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        for (who, on, until) in &self.waits {
            let (Some((x, y)), Some((to_x, to_y))) = (places.get(who.as_str()), places.get(on.as_str())) else {
                continue;
            };
            let dash = match until {
                Condition::Healthy => "",
                Condition::Completed => " stroke-dasharray=\"6 4\"",
                Condition::Started => " stroke-dasharray=\"2 3\"",
            };
            let (y, to_x, to_y) = (y + HEIGHT / 2, to_x + WIDTH, to_y + HEIGHT / 2);
            let (a, b) = (x.saturating_sub(40), to_x + 40);
            let _ = writeln!(
                out,
                "<path d=\"M{x} {y} C{a} {y} {b} {to_y} {to_x} {to_y}\" fill=\"none\" stroke=\"#7a8794\"{dash}/>"
            );
        }
        for (name, node) in &self.services {
            let Some((x, y)) = places.get(name.as_str()) else { continue };
            let radius = if node.job { HEIGHT / 2 } else { 6 };
            let stroke = if node.published { "#0b6bcb\" stroke-width=\"2.5" } else { "#45525e" };
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"{radius}\" fill=\"#f4f7fa\" \
                 stroke=\"{stroke}\"/>"
            );
            let networks = node.networks.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let (middle, first, second) = (x + WIDTH / 2, y + 19, y + 35);
            let _ = writeln!(
                out,
                "<text x=\"{middle}\" y=\"{first}\" text-anchor=\"middle\" font-weight=\"bold\">{name}</text>\n\
                 <text x=\"{middle}\" y=\"{second}\" text-anchor=\"middle\" font-size=\"10\" fill=\"#45525e\">{networks}</text>"
            );
        }
        let y = height - 12;
        let _ = writeln!(
            out,
            "<text x=\"20\" y=\"{y}\" font-size=\"11\" fill=\"#45525e\">solid: waits until healthy; dashed: until the job \
             has ended; round: a job; blue: published; below the name: networks</text>\n</svg>"
        );
        out
    }

    /// Longest way to a service that waits for nothing. On a cycle it ends at the number of services.
    fn columns(&self) -> BTreeMap<String, usize> {
        let mut columns: BTreeMap<String, usize> = self.services.keys().map(|name| (name.clone(), 0)).collect();
        for _ in 0..self.services.len() {
            for (who, on, _) in &self.waits {
                let least = columns.get(on).copied().unwrap_or(0) + 1;
                if let Some(slot) = columns.get_mut(who) {
                    *slot = (*slot).max(least).min(self.services.len());
                }
            }
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(waits: &[(&str, &str)]) -> Graph {
        let names = waits.iter().flat_map(|(a, b)| [*a, *b]);
        let node = || Node { networks: BTreeSet::from(["n".to_owned()]), job: false, published: false };
        Graph {
            services: names.map(|name| (name.to_owned(), node())).collect(),
            waits: waits.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned(), Condition::Healthy)).collect(),
        }
    }

    #[test]
    fn a_cycle_is_found_and_named() {
        assert_eq!(graph(&[("a", "b"), ("b", "c")]).cycle(), None);
        let names = graph(&[("a", "b"), ("b", "c"), ("c", "b")]).cycle();
        assert_eq!(names, Some(["b", "c", "b"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn columns_are_longest_paths_and_a_cycle_ends() {
        let columns = graph(&[("a", "b"), ("a", "c"), ("b", "c")]).columns();
        assert_eq!((columns["a"], columns["b"], columns["c"]), (2, 1, 0));
        assert!(graph(&[("a", "b"), ("b", "a")]).columns().values().all(|column| *column <= 2));
    }

    #[test]
    fn both_drawings_name_every_service_and_wait() {
        let graph = graph(&[("web", "db")]);
        assert!(graph.dot().contains("\"web\" -> \"db\" [style=solid];"));
        assert_eq!(graph.svg().matches("<path").count(), 1);
        assert_eq!(graph.svg().matches("font-weight").count(), 2);
        assert_eq!(graph.reachable(), BTreeSet::from([("db".to_owned(), "web".to_owned())]));
    }
}
