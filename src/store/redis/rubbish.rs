//! What a server may answer, fed to whatever takes an answer apart.

use super::Mode;
use super::reply::Reply;
use super::server::{check_server, life};
use super::slots::{At, SlotMap};
use crate::store::StoreResult;
use ::redis::Value;

/// Gives `value` to every reader of answers.
pub(crate) fn read_rubbish(value: &Value) {
    fn read<T>(value: &Value, reader: impl FnOnce(Reply) -> StoreResult<T>) {
        let _ = Reply::new("rubbish", value.clone()).and_then(reader);
    }
    read(value, Reply::found);
    read(value, Reply::walked);
    read(value, Reply::head);
    read(value, Reply::logged);
    read(value, Reply::guarded);
    read(value, Reply::flushed);
    read(value, Reply::time);
    read(value, Reply::entries);
    read(value, Reply::stored);
    read(value, Reply::text);
    read(value, Reply::flag);
    read(value, Reply::count);
    for count in [0, 1, 2] {
        read(value, |reply| reply.leases(count));
        read(value, |reply| reply.tag_floors(count));
        read(value, |reply| reply.flags(count));
    }
    let asked = At {
        host: "localhost".to_owned(),
        port: 1,
    };
    if let Ok(slots) = SlotMap::read(&asked, value.clone()) {
        let _ = slots.owner(0);
        let _ = slots.nodes().count();
    }
}

/// Gives `text` to every reader of `INFO`.
pub(crate) fn read_rubbish_info(text: &str) {
    for mode in [Mode::Standalone, Mode::Cluster] {
        let _ = check_server(text, mode);
    }
    let _ = life("rubbish", text);
}
