//! A message's headers, with names of any bytes.
//!
//! rdkafka's iterator panics at a name that is not UTF-8, which any producer can send, so this module uses librdkafka's C API.

#![allow(unsafe_code, reason = "librdkafka through FFI")]

use std::borrow::Cow;
use std::ffi::CStr;
use std::{ptr, slice};

use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaRespErr;

/// Names and values, in order. Invalid UTF-8 in a name becomes U+FFFD.
///
/// # Safety
/// The message must live as long as `'m`.
pub(super) unsafe fn of<'m>(
    message: *const rd::rd_kafka_message_t,
) -> impl Iterator<Item = (Cow<'m, str>, Option<&'m [u8]>)> {
    let mut headers = ptr::null_mut();
    // SAFETY: the caller guarantees that the message lives; librdkafka only writes the pointer, null if there are no headers.
    let answer = unsafe { rd::rd_kafka_message_headers(message, &raw mut headers) };
    let any = answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && !headers.is_null();
    let headers = headers.cast_const();
    (0..).map_while(move |index| {
        if !any {
            return None;
        }
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the headers belong to the message. Unless the call returns an error, the name ends in a zero byte and the
        // value, unless null, has `size` bytes; both live as long as the message.
        unsafe {
            let answer = rd::rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size);
            if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast::<u8>(), size));
            Some((CStr::from_ptr(name).to_string_lossy(), value))
        }
    })
}
