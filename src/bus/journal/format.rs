//! The bytes of a journal: a header, and records, each with its length and checksum.

use super::JournalDamage;
use crate::bus::pending::{Item, Name};
use crate::coherence::Lane;
use crate::key::KeySpace;
use crate::store::Namespace;
use bytes::{Buf, Bytes};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 4] = b"TIDJ";
const VERSION: u8 = 1;
pub(super) const NOTED: u8 = 1;
pub(super) const STRUCK: u8 = 2;
/// Length and checksum before each record, and the checksum of the two.
const PREFIX: usize = 12;

pub(super) fn header(namespace: &Namespace) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.push(VERSION);
    header.extend(namespace.lanes.to_be_bytes());
    push_bytes(namespace.name.as_bytes(), &mut header);
    let sum = checksum(&header);
    header.extend(sum.to_be_bytes());
    header
}

fn checksum(bytes: &[u8]) -> u32 {
    xxh3_64(bytes) as u32
}

fn push_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // A name of 4 GiB does not fit into memory beside what it is the name of.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend(length.to_be_bytes());
    out.extend(&bytes[..length as usize]);
}

pub(super) fn push_record(mark: u8, item: &Item, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend([0; PREFIX]);
    out.push(mark);
    let kind = match item {
        Item::Key { .. } => 1,
        Item::Entity { .. } => 2,
        Item::Lane { .. } => 3,
    };
    out.push(kind);
    out.extend(item.lane().0.to_be_bytes());
    match item {
        Item::Key { of, hash, key, .. } => {
            out.extend(hash.to_be_bytes());
            push_bytes(of.text.as_bytes(), out);
            push_bytes(key, out);
        }
        Item::Entity { of, .. } => push_bytes(of.text.as_bytes(), out),
        Item::Lane { .. } => {}
    }
    let body = &out[start + PREFIX..];
    let (length, sum) = (body.len() as u32, checksum(body));
    let both = [length.to_be_bytes(), sum.to_be_bytes()].concat();
    let check = checksum(&both).to_be_bytes();
    out[start..start + PREFIX].copy_from_slice(&[&both[..], &check].concat());
}

/// A journal as it was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) items: Vec<Item>,
    pub(super) damage: Option<JournalDamage>,
}

/// What the bytes of a journal say is pending.
///
/// # Errors
/// Why they are not the journal of this namespace.
pub(super) fn read(
    bytes: &[u8],
    namespace: &Namespace,
    space: &KeySpace,
) -> Result<Left, &'static str> {
    let mut rest = Bytes::copy_from_slice(bytes);
    if rest.is_empty() {
        return Ok(Left::default());
    }
    let lanes = read_header(&mut rest, namespace)?;
    let mut pending = HashMap::new();
    let mut order = 0_u64;
    let mut damage = None;
    while !rest.is_empty() {
        let left = rest.clone();
        match next_record(&mut rest, space).filter(|(_, item)| item.lane().0 < lanes) {
            Some((NOTED, item)) => {
                order += 1;
                pending.insert(item, order);
            }
            Some((_, item)) => {
                pending.remove(&item);
            }
            None => {
                damage = Some(damage_of(&left, (bytes.len() - left.len()) as u64));
                break;
            }
        }
    }
    let mut items: Vec<_> = pending.into_iter().collect();
    items.sort_unstable_by_key(|(_, order)| *order);
    let mut items: Vec<_> = items.into_iter().map(|(item, _)| item).collect();
    if lanes != namespace.lanes {
        items = on_all_lanes(&items, namespace);
    }
    if let Some(JournalDamage::Corrupt { .. }) = damage {
        items = namespace.lanes().map(|lane| Item::Lane { lane }).collect();
    }
    Ok(Left { items, damage })
}

/// Gives the lanes that the journal was written for.
fn read_header(rest: &mut Bytes, namespace: &Namespace) -> Result<u16, &'static str> {
    const NO_JOURNAL: &str = "not a journal";
    let whole = rest.clone();
    if rest.len() < MAGIC.len() || rest.split_to(MAGIC.len()) != MAGIC[..] {
        return Err(NO_JOURNAL);
    }
    if rest.try_get_u8().map_err(|_| NO_JOURNAL)? != VERSION {
        return Err("a journal of another version of this crate");
    }
    let lanes = rest.try_get_u16().map_err(|_| NO_JOURNAL)?;
    let name = take_bytes(rest).ok_or(NO_JOURNAL)?;
    let sum = checksum(&whole[..whole.len() - rest.len()]);
    if rest.try_get_u32() != Ok(sum) {
        return Err(NO_JOURNAL);
    }
    if name != namespace.name.as_bytes() {
        return Err("the journal of another namespace");
    }
    Ok(lanes)
}

/// The length and checksum of the next record: `None` if they are cut off, `Some(None)` if they are not
/// what was written.
fn take_prefix(rest: &mut Bytes) -> Option<Option<(usize, u32)>> {
    let length = rest.try_get_u32().ok()?;
    let sum = rest.try_get_u32().ok()?;
    let check = rest.try_get_u32().ok()?;
    // The length has a checksum of its own: one that lies must not pass for a record that was cut off.
    let sound = check == checksum(&[length.to_be_bytes(), sum.to_be_bytes()].concat());
    Some(sound.then_some((length as usize, sum)))
}

/// The next record; `None` if it is not whole or not what was written.
fn next_record(rest: &mut Bytes, space: &KeySpace) -> Option<(u8, Item)> {
    let (length, sum) = take_prefix(rest)??;
    if length > rest.len() {
        return None;
    }
    let body = rest.split_to(length);
    (checksum(&body) == sum).then(|| take_record(body, space))?
}

fn take_bytes(bytes: &mut Bytes) -> Option<Bytes> {
    let length = bytes.try_get_u32().ok()? as usize;
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

pub(super) fn take_record(mut body: Bytes, space: &KeySpace) -> Option<(u8, Item)> {
    let mark = body.try_get_u8().ok()?;
    let kind = body.try_get_u8().ok()?;
    let lane = Lane(body.try_get_u16().ok()?);
    let take_name = |body: &mut Bytes| {
        let text = take_bytes(body)?;
        let text: Arc<str> = std::str::from_utf8(&text).ok()?.into();
        let hash = space.entity(&text).entity_hash();
        Some(Name { text, hash })
    };
    let item = match kind {
        1 => {
            let hash = body.try_get_u64().ok()?;
            let of = take_name(&mut body)?;
            let key = take_bytes(&mut body)?;
            Item::Key {
                lane,
                of,
                hash,
                key,
            }
        }
        2 => {
            let of = take_name(&mut body)?;
            Item::Entity { lane, of }
        }
        3 => Item::Lane { lane },
        _ => return None,
    };
    (body.is_empty() && matches!(mark, NOTED | STRUCK)).then_some((mark, item))
}

/// What is wrong with `left`, which begins with a record that is no good. A tail of zeros is what a file
/// system leaves where bytes were promised and never came.
fn damage_of(left: &[u8], at: u64) -> JournalDamage {
    let bytes = left.len() as u64;
    let mut rest = Bytes::copy_from_slice(left);
    let is_cut_off = match take_prefix(&mut rest) {
        Some(prefix) => prefix.is_some_and(|(length, _)| length > rest.len()),
        None => true,
    };
    match is_cut_off || left.iter().all(|&byte| byte == 0) {
        true => JournalDamage::Torn { bytes },
        false => JournalDamage::Corrupt { at, bytes },
    }
}

/// The entities of `items` on every lane: where their keys are now cannot be told.
fn on_all_lanes(items: &[Item], namespace: &Namespace) -> Vec<Item> {
    let names: BTreeSet<(Arc<str>, u64)> = items
        .iter()
        .filter_map(|item| match item {
            Item::Key { of, .. } | Item::Entity { of, .. } => Some((of.text.clone(), of.hash)),
            Item::Lane { .. } => None,
        })
        .collect();
    let whole = items.iter().any(|item| matches!(item, Item::Lane { .. }));
    let mut all = Vec::new();
    for lane in namespace.lanes() {
        if whole {
            all.push(Item::Lane { lane });
            continue;
        }
        all.extend(names.iter().map(|(text, hash)| Item::Entity {
            lane,
            of: Name {
                text: Arc::clone(text),
                hash: *hash,
            },
        }));
    }
    all
}
