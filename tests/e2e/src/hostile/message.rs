//! Well-formed messages of the control queue.

use bytemuck::{NoUninit, bytes_of};
use vmsrs_protocol::NAME_MAX;
use vmsrs_protocol::control::{ControlHeader, MESSAGE_OPEN_APP, OpenApp};

/// A message with a correct header: `payload`, then `list`.
pub fn message<T: NoUninit>(kind: u32, payload: &T, list: &[u8]) -> Vec<u8> {
    let payload = [bytes_of(payload), list].concat();
    let header = ControlHeader {
        kind,
        length: payload.len() as u32,
    };
    [bytes_of(&header), &payload].concat()
}

/// A message that opens the app `hostile`.
pub fn open_app() -> Vec<u8> {
    let mut name = [0; NAME_MAX];
    name[..7].copy_from_slice(b"hostile");
    message(MESSAGE_OPEN_APP, &OpenApp { name }, &[])
}
