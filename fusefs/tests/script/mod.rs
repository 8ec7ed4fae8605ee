//! The vocabulary of random tests: a stack of layers, and what is done to a mount of it.
//!
//! A [`Script`] is a value and nothing else. It knows no mount and no file system; whoever runs it
//! decides what an [`Op`] is on their system, and compares. Two kinds of tests do: the differential
//! test runs a script on Lamina and on kernel overlayfs, the union's model test on a union and on
//! a model of it.
//!
//! - `paths`: the few names that all of it happens at. They are few, so that whiteouts, opaque
//!   directories, hard links and merged directories meet each other all the time.
//! - `layers`: what a layer holds; [`settled`] says which of its entries there are in the end.
//! - `disk`: a layer written to a directory.
//! - `op`: what can be done. Operations that fail are as good as others: their errno is compared.
//! - `strategies`: proptest's strategies for all of it, with their weights.
//!
//! A script prints as Rust code, so that one that proptest has shrunk can be pasted as a test:
//! `use script::words::*` makes every word of it known.

// Nobody who shares the vocabulary uses all of it.
#![allow(dead_code, unused_imports)]

pub(crate) mod disk;
mod layers;
mod op;
mod paths;
mod strategies;

use std::fmt;

pub(crate) use layers::{Content, Device, Entry, Layer, Meta, Mode, PLAIN, Time, data, settled};
pub(crate) use op::{Access, Act, Allocate, Op, Renaming, Setting, Special, User};
pub(crate) use paths::{Path, ROOT, depth, parent, paths};
pub(crate) use strategies::{
    attribute_op, data_op, held_op, layer, layers, look_op, mount_op, name_op, op, script, user_op,
};

/// All that a printed script is made of.
pub(crate) mod words {
    pub(crate) use super::Script;
    pub(crate) use super::layers::{Content, Device::*, Entry, Meta, Mode, PLAIN, Time};
    pub(crate) use super::op::{
        Access::*, Act::*, Allocate::*, Op, Renaming::*, Setting::*, Special::*, User::*,
    };
}

/// Layers, and what is done to a mount of them.
#[derive(Clone, PartialEq)]
pub(crate) struct Script {
    /// The topmost first. There may be none.
    pub(crate) layers: Vec<Layer>,
    /// In order.
    pub(crate) ops: Vec<Op>,
}

impl Script {
    /// The script that its own printing is pasted as.
    pub(crate) fn new(layers: &[&[(Path, Entry)]], ops: &[Op]) -> Self {
        Self {
            layers: layers.iter().map(|layer| layer.to_vec()).collect(),
            ops: ops.to_vec(),
        }
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Script::new(")?;
        writeln!(f, "    &[")?;
        for layer in &self.layers {
            writeln!(f, "        &[")?;
            for (path, entry) in layer {
                writeln!(f, "            ({path:?}, Entry::{entry:?}),")?;
            }
            writeln!(f, "        ],")?;
        }
        writeln!(f, "    ],")?;
        writeln!(f, "    &[")?;
        for op in &self.ops {
            writeln!(f, "        Op::{op:?},")?;
        }
        writeln!(f, "    ],")?;
        write!(f, ")")
    }
}
