//! Mistakes, one at a time, laid over the files of this repository: each has a message.

use deployments::compose::{Project, Settings};
use deployments::validate;

use super::common::{entry, listed, root, schema};

/// The problems of an environment when a further file is laid over it.
fn with(environment: &str, over: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("over.yaml");
    std::fs::write(&file, over).unwrap();
    match Project::with(&entry(environment), &[file], &Settings::new(), &|_| None) {
        Ok(project) => listed(&validate::compose(&project, &schema(), environment)),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_mistake_has_a_message_that_names_it() {
    for (environment, over, message) in [
        ("dev", "services: {rag: {helthcheck: {}}}", "helthcheck"),
        ("dev", "services: {rag: {networks: [nowhere]}}", "uses networks `nowhere`, which is not declared"),
        ("dev", "networks: {lonely: {}}", "networks `lonely`: is declared and no service uses it"),
        ("dev", "services: {rag: {secrets: [no_such]}}", "uses secrets `no_such`, which is not declared"),
        ("dev", "configs: {own_volumes: {file: ../nope}}", "its file `../nope` does not exist"),
        ("dev", "services: {core: {depends_on: {ghost: {condition: service_healthy}}}}", "waits for `ghost`"),
        ("dev", "services: {core: {depends_on: [tika]}}", "which says nothing about its state"),
        ("dev", "services: {core: {depends_on: {init: {condition: service_healthy}}}}", "which has no health check"),
        ("dev", "services: {core: {depends_on: {tika: {condition: service_completed_successfully}}}}", "is not a job"),
        (
            "dev",
            "services: {tika: {depends_on: {rag: {condition: service_healthy}}, networks: [app]}, rag: {depends_on: {tika: {condition: service_healthy}}}}",
            "a cycle: rag -> tika -> rag",
        ),
        (
            "dev",
            "services: {tika: {ports: [\"127.0.0.1:8000:9998\"]}}",
            "publishes port 8000, which `core` publishes too",
        ),
        ("dev", "services: {tika: {ports: [\"127.0.0.1:98000:9998\"]}}", "which is not a port, 1 to 65535"),
        ("dev", "services: {tika: {ports: [\"9998:9998\"]}}", "publishes port 9998 on every address"),
        ("prod", "services: {tika: {ports: [\"127.0.0.1:9998:9998\"]}}", "is not in the network `edge`"),
        ("test", "services: {core: {ports: [\"127.0.0.1:8000:8000\"]}}", "publishes the fixed port 8000"),
        ("prod", "services: {tika: {image: apache/tika}}", "its image has no tag, or `latest`"),
        ("prod", "services: {tika: {image: \"apache/tika:latest\"}}", "its image has no tag, or `latest`"),
        ("prod", "services: {tika: {user: tika}}", "its user is not numeric"),
        ("prod", "services: {tika: {user: \"0:0\"}}", "runs as root"),
        ("prod", "services: {tika: {read_only: false}}", "its root file system is writable"),
        ("prod", "services: {tika: {cap_add: [NET_ADMIN]}}", "is given capabilities"),
        ("prod", "services: {tika: {cap_add: [NET_BIND_SERVICE]}}", "service `tika`: is given capabilities"),
        ("prod", "services: {proxy: {cap_add: [NET_ADMIN]}}", "service `proxy`: is given capabilities"),
        ("prod", "services: {tika: {volumes: [\"/var/run/docker.sock:/x:ro\"]}}", "mounts the engine's socket"),
        (
            "prod",
            "services: {tika: {volumes: [\"init-rag:/x:ro\"], depends_on: {init: {condition: service_completed_successfully}}}}",
            "volumes `init-rag`: holds secrets, and rag and tika have all of them\n  hint: give each a volume with its own",
        ),
        ("prod", "services: {llm-storage: {cap_add: [SYS_ADMIN]}}", "service `llm-storage`: is given capabilities"),
        ("prod", "services: {tika: {privileged: true}}", "service `tika`: shares the host (`privileged: true`)"),
        (
            "prod",
            "services: {tika: {use_api_socket: true}}",
            "service `tika`: shares the host (`use_api_socket: true`)",
        ),
        ("prod", "services: {llm-storage: {pid: host}}", "service `llm-storage`: shares the host (`pid: host`)"),
        ("prod", "services: {tika: {ipc: host}}", "service `tika`: shares the host (`ipc: host`)"),
        ("prod", "services: {tika: {uts: host}}", "service `tika`: shares the host (`uts: host`)"),
        ("prod", "services: {tika: {cgroup: host}}", "service `tika`: shares the host (`cgroup: host`)"),
        ("prod", "services: {tika: {userns_mode: host}}", "service `tika`: shares the host (`userns_mode: host`)"),
        (
            "prod",
            "services: {llm-storage: {network_mode: host}}",
            "`llm-storage`: shares the host (`network_mode: host`)",
        ),
        (
            "prod",
            "services: {tika: {devices: [\"/dev/kvm:/dev/kvm\"]}}",
            "shares the host (`devices: /dev/kvm:/dev/kvm`)",
        ),
        ("prod", "services: {tika: {devices: [{source: /dev/sda}]}}", "shares the host (`devices: /dev/sda`)"),
        ("prod", "services: {tika: {device_cgroup_rules: [\"a *:* rwm\"]}}", "`device_cgroup_rules: a *:* rwm`"),
        ("prod", "services: {tika: {security_opt: [\"seccomp:unconfined\"]}}", "(`security_opt: seccomp:unconfined`)"),
        ("prod", "services: {tika: {security_opt: [apparmor=unconfined]}}", "(`security_opt: apparmor=unconfined`)"),
        ("prod", "services: {tika: {security_opt: [\"label:disable\"]}}", "(`security_opt: label:disable`)"),
        (
            "prod",
            "services: {tika: {post_start: [{command: [x], privileged: true}]}}",
            "service `tika`: shares the host (`post_start: privileged: true`)",
        ),
        ("prod", "services: {tika: {volumes: [\"/:/host\"]}}", "service `tika`: mounts `/` of the host"),
        ("prod", "services: {tika: {volumes: [\"/etc:/x:ro\"]}}", "service `tika`: mounts `/etc` of the host"),
        ("prod", "services: {tika: {volumes: [\"/etc/shadow:/x:ro\"]}}", "mounts `/etc/shadow` of the host"),
        ("dev", "services: {tika: {volumes: [\"/proc:/x\"]}}", "service `tika`: mounts `/proc` of the host"),
        ("test", "services: {tika: {volumes: [\"/sys/fs:/x\"]}}", "service `tika`: mounts `/sys/fs` of the host"),
        ("prod", "services: {tika: {volumes: [{type: bind, source: /var, target: /x}]}}", "mounts `/var` of the host"),
        (
            "prod",
            "services: {tika: {volumes: [\"/run/podman/podman.sock:/x\"]}}",
            "`/run/podman/podman.sock` of the host",
        ),
        ("prod", "services: {tika: {volumes: [\"/srv/../var/run:/x\"]}}", "mounts `/srv/../var/run` of the host"),
        (
            "prod",
            "services: {tika: {volumes: [\"../../../../../../../../../../../../etc:/x\"]}}",
            "mounts `../../../../../../../../../../../../etc` of the host",
        ),
        (
            "prod",
            "volumes: {rag-vault: {driver_opts: {type: none, o: bind, device: /etc}}}",
            "volumes `rag-vault`: is `/etc` of the host",
        ),
        ("prod", "services: {tika: {healthcheck: {retries: 0}}}", "`tika`: its health check has no retries"),
        (
            "prod",
            "services: {tika: {healthcheck: {test: [CMD, \"true\"]}}}",
            "`tika`: its health check: `true` is always true",
        ),
        (
            "prod",
            "services: {tika: {healthcheck: {test: exit 0}}}",
            "`tika`: its health check: `exit 0` is always true",
        ),
        (
            "prod",
            "services: {tika: {healthcheck: {test: [CMD-SHELL, \":\"]}}}",
            "`tika`: its health check: `:` is always true",
        ),
        (
            "prod",
            "services: {tika: {healthcheck: {test: \"curl -f http://127.0.0.1:9998 || true\"}}}",
            "`tika`: its health check: `curl -f http://127.0.0.1:9998 || true` is always true: it asks the service nothing",
        ),
        ("prod", "services: {tika: {healthcheck: {disable: true}}}", "service `tika`: has no health check"),
        (
            "prod",
            "services: {litellm: {healthcheck: {test: [CMD, curl, -f, \"http://127.0.0.1:4000/health\"]}}}",
            "`litellm`: its health check: `/health` of LiteLLM needs its key and calls every model: ask /health/liveliness",
        ),
        (
            "test",
            "services: {litellm-proxy: {healthcheck: {test: [CMD, curl, -f, \"http://127.0.0.1:4000/health/live\"]}}}",
            "`litellm-proxy`: its health check: `/health/live` does not say whether LiteLLM is well",
        ),
        ("prod", "services: {tika: {image: \"apache/tika:3.1@sha256:0\"}}", "`tika`: its image's digest is none"),
        ("dev", "services: {core: {read_only: true}}", "service `core`: is read-only, and `develop.watch` copies"),
        ("dev", "services: {core: {user: \"10001:10001\"}}", "service `core`: `develop.watch` copies files into it"),
        ("dev", "services: {core: {user: games}}", "service `core`: its user is not numeric"),
        (
            "prod",
            "services: {tika: {environment: {NO_SUCH: x}}}",
            "sees `NO_SUCH`, which env/schema.toml does not describe",
        ),
        ("prod", "services: {rag: {environment: {OLLAMA_URL: \"http://olama:11434\"}}}", "`olama` is no service"),
        (
            "prod",
            "services: {rag: {environment: {OLLAMA_URL: \"http://postgres:5432\"}}}",
            "`postgres` shares no network",
        ),
        (
            "prod",
            "services: {rag: {environment: {OLLAMA_URL: \"http://ollama:80\"}}}",
            "`ollama` does not offer port 80",
        ),
        (
            "prod",
            "services: {rag: {environment: {LOG_LEVEL: \"${NEW_NAME:-x}\"}}}",
            "is used by the compose files and not described",
        ),
        (
            "prod",
            "services: {rag: {environment: {LOG_LEVEL: \"${LOG_LEVEL:?say it}\"}}}",
            "`LOG_LEVEL` must be set: say it",
        ),
        ("prod", "services: {rag: {environment: {LOG_LEVEL: \"${LOG_LEVEL\"}}}", "is not a variable"),
        (
            "prod",
            "services:\n  rag:\n    depends_on: !override\n      tika: {condition: service_healthy}\n",
            "reads `init-rag` and does not wait for the end of `init`",
        ),
        ("prod", "services: {tika: {restart: \"no\"}}", "`tika`: has a health check and is not started again"),
        ("prod", "services: {tika: {healthcheck: {interval: fifteen}}}", "`fifteen` is no time (30s, 1m30s): interval"),
        ("prod", "services: {tika: {stop_grace_period: 5 s}}", "`5 s` is no time (30s, 1m30s): stop_grace_period"),
        ("prod", "services: {tika: {deploy: {resources: {limits: {memory: lots}}}}}", "its limit of memory is none"),
        ("prod", "services: {tika: {deploy: {resources: {limits: {cpus: many}}}}}", "its limit of cpus is none"),
        (
            "prod",
            "services: {tika: {depends_on: {proxy: {condition: service_healthy}}}}",
            "waits for `proxy`, which is in the profile tls and may not be there",
        ),
        ("dev", "services: {tika: {ports: [\"0.0.0.0:9998:9998\"]}}", "publishes port 9998 on every address"),
        (
            "dev",
            "services: {tika: {ports: [\"127.0.0.1:9999:9999\"]}}",
            "publishes port 9999 of its container, which it does not offer",
        ),
        ("prod", "volumes: {data: {}}", "is not called AREA-CONTENT"),
        ("prod", "volumes: {rag-vault: {labels: {obelisk.backup: ftp}}}", "has no label obelisk.backup of"),
        ("prod", "services: [", "line 1"),
    ] {
        let said = with(environment, over);
        assert!(said.contains(message), "{over}\nsaid: {said}\nwanted: {message}");
    }
}

/// What is legitimate: folders of one's own, memory as a volume, and the graphics card of the override for it.
#[test]
fn folders_of_ones_own_and_a_graphics_card_are_not_the_host() {
    for over in [
        "services: {tika: {volumes: [\"/srv/vault:/x:ro\", \"/variable:/y\", \"../config:/z\"]}}",
        "volumes: {rag-vault: {driver_opts: {type: tmpfs, device: tmpfs}}}",
        "volumes: {rag-vault: {driver_opts: {type: none, o: bind, device: /srv/vault}}}",
    ] {
        assert_eq!(with("prod", over), "", "{over}");
    }
    let gpu = root().join("docker/compose/overrides/gpu.yaml");
    let gpu = Project::with(&entry("prod"), &[gpu], &Settings::new(), &|_| None).unwrap();
    assert_eq!(gpu.services()["ollama"].host, [""; 0]);
    let said = listed(&validate::compose(&gpu, &schema(), "prod"));
    assert!(!said.contains("of the host") && !said.contains("shares the host"), "{said}");
}
