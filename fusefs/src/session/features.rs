//! What a kernel may offer and an older one does not.

use fuser::InitFlags;

bitflags::bitflags! {
    /// Features of the kernel's FUSE that came late, and without which a session serves all the
    /// same. [`super::SessionOptions::without`] leaves some of them aside: what remains is what
    /// an older kernel gives, so that its paths are tested on a new one.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub struct KernelFeatures: u8 {
        /// The kernel reads, writes and maps backing files by itself (Linux 6.9). Without it each
        /// read and write is a request.
        const PASSTHROUGH = 1 << 0;
        /// Idmapped mounts (6.12).
        const IDMAP = 1 << 1;
        /// A listing brings the attributes too (3.9). Without it each is a LOOKUP.
        const READDIRPLUS = 1 << 2;
        /// Lookups and listings of one directory at the same time (4.7).
        const PARALLEL_DIROPS = 1 << 3;
        /// A write, truncate or change of owner says whether it takes setuid and setgid away
        /// (5.12). Without it the kernel sends a SETATTR of the mode before, except where writes
        /// bypass its cache: there we go by the writer's user.
        const KILLPRIV_V2 = 1 << 4;
        /// Targets of symbolic links stay in the kernel's cache (4.20).
        const CACHED_SYMLINKS = 1 << 5;
        /// Directories are opened and closed without asking us (5.1).
        const NO_OPENDIR = 1 << 6;
        /// Requests are sent again to a process that takes the mount over (6.9). Without it a mount
        /// ends with the process that serves it.
        const RESEND = 1 << 7;
    }
}

impl KernelFeatures {
    /// The flags of the handshake that stand for these features.
    pub(super) fn init_flags(self) -> InitFlags {
        let flags = [
            (Self::PASSTHROUGH, InitFlags::FUSE_PASSTHROUGH),
            (Self::IDMAP, InitFlags::FUSE_ALLOW_IDMAP),
            (Self::READDIRPLUS, InitFlags::FUSE_DO_READDIRPLUS),
            (Self::PARALLEL_DIROPS, InitFlags::FUSE_PARALLEL_DIROPS),
            (Self::KILLPRIV_V2, InitFlags::FUSE_HANDLE_KILLPRIV_V2),
            (Self::CACHED_SYMLINKS, InitFlags::FUSE_CACHE_SYMLINKS),
            (Self::NO_OPENDIR, InitFlags::FUSE_NO_OPENDIR_SUPPORT),
            (Self::RESEND, InitFlags::FUSE_HAS_RESEND),
        ];
        let of_ours = flags.iter().filter(|(feature, _)| self.contains(*feature));
        of_ours.fold(InitFlags::empty(), |all, (_, flag)| all | *flag)
    }
}
