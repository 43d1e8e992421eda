//! The filter of system calls: what neither namespaces nor a lack of capabilities can deny.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter, sock_filter,
};

use super::{Level, Network};

/// Not there, as if the kernel were older: programs fall back. `clone3` takes its flags from memory, where no filter looks;
/// `io_uring` makes system calls that no filter sees; memory of `memfd` and System V belongs to no process and is not counted; keys
/// belong to the user and not to the namespace.
const ABSENT: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
];

/// Calls with a path that Debian's proot does not translate: they would see the machine's files. C libraries know older ones.
const UNTRANSLATED: &[i64] = &[libc::SYS_statx, libc::SYS_openat2, libc::SYS_faccessat2, FCHMODAT2];

/// Of the same number on all architectures; newer than the C library's list.
const FCHMODAT2: i64 = 452;

/// What outlives a step where it has no IPC namespace.
const LASTING: &[i64] = &[libc::SYS_msgget, libc::SYS_semget, libc::SYS_mq_open];

/// Refused: ways to other namespaces, mounts and roots.
const REFUSED: &[i64] = &[
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
];

const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Installs the filter for this process and all that it starts, for good.
pub(super) fn install(level: Level, network: Network) -> Result<(), String> {
    for program in programs(level, network).map_err(|error| format!("filter of system calls: {error}"))? {
        apply_filter(&program).map_err(|error| format!("this system takes no filter of system calls: {error}"))?;
    }
    Ok(())
}

fn programs(level: Level, network: Network) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let mut absent: Vec<i64> = ABSENT.to_vec();
    if level != Level::Namespaces {
        absent.extend(LASTING);
    }
    if level == Level::Proot {
        absent.extend(UNTRANSLATED);
    }
    let absent = absent.into_iter().map(|call| (call, Vec::new())).collect();

    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let flags = NAMESPACES.iter().map(|flag| {
        let flag = u64::from(flag.unsigned_abs());
        only(vec![condition(SeccompCmpOp::MaskedEq(flag), flag)?])
    });
    refused.insert(libc::SYS_clone, flags.collect::<Result<_, _>>()?);

    // Without a namespace of its own, a step with an internet socket is on the network. Other families (virtual machines, raw
    // packets, the kernel's cryptography) are denied everywhere.
    let families: &[i32] = match (level, network) {
        (Level::Namespaces, _) | (_, Network::Open) => {
            &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK]
        }
        (_, Network::None) => &[libc::AF_UNIX],
    };
    let others: Result<Vec<_>, _> =
        families.iter().map(|family| condition(SeccompCmpOp::Ne, u64::from(family.unsigned_abs()))).collect();
    refused.insert(libc::SYS_socket, vec![only(others?)?]);
    if level != Level::Namespaces {
        // A signal for all: without a namespace of its own, a step's "all" is every process of its user, other steps' too.
        let all = (-1_i32).cast_unsigned();
        refused.insert(libc::SYS_kill, vec![only(vec![condition(SeccompCmpOp::Eq, all.into())?])?]);
    }

    [(absent, libc::ENOSYS), (refused, libc::EPERM)]
        .into_iter()
        .map(|(rules, error)| {
            let denied = SeccompAction::Errno(error.unsigned_abs());
            let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, std::env::consts::ARCH.try_into()?)?;
            Ok(without_x32(filter.try_into()?))
        })
        .collect()
}

fn only(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(conditions)
}

/// About the first argument. The kernel looks at its lower half only.
fn condition(operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)
}

/// x86-64 has each system call a second time, under a number with bit 30 set, and calls itself by the same name.
fn without_x32(program: BpfProgram) -> BpfProgram {
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let mut whole = vec![
        sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: 0x4000_0000 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: refuse },
    ];
    whole.extend(program);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_made_for_each_level() {
        for level in Level::ALL {
            for network in [Network::None, Network::Open] {
                assert_eq!(programs(level, network).unwrap().len(), 2, "{level}");
            }
        }
    }
}
