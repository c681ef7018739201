//! ACLs of a real Kafka. rdkafka has no API for them, so this module calls librdkafka directly.

use std::ffi::CString;
use std::time::Duration;

use rdkafka::bindings as rd;
pub use rdkafka::bindings::rd_kafka_AclOperation_t as Operation;
pub use rdkafka::bindings::rd_kafka_ResourceType_t as Resource;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::types::RDKafkaRespErr;

/// Allows one operation for one user. From then on, other users except super users are denied it, and all other operations on
/// the resource.
pub fn allow(servers: &str, resource: Resource, name: &str, operation: Operation, user: &str) {
    let config = ClientConfig::new().set("bootstrap.servers", servers).clone();
    let client: rdkafka::admin::AdminClient<DefaultClientContext> = config.create().unwrap();
    let (name, principal) = (CString::new(name).unwrap(), CString::new(format!("User:{user}")).unwrap());
    let handle = client.inner().native_ptr();
    // SAFETY: the handle and the strings outlive the calls; each object is destroyed once, after its last use.
    unsafe {
        let binding = rd::rd_kafka_AclBinding_new(
            resource,
            name.as_ptr(),
            rd::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
            principal.as_ptr(),
            c"*".as_ptr(),
            operation,
            rd::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
            std::ptr::null_mut(),
            0,
        );
        let queue = rd::rd_kafka_queue_new(handle);
        let mut bindings = [binding];
        rd::rd_kafka_CreateAcls(handle, bindings.as_mut_ptr(), 1, std::ptr::null(), queue);
        let event = rd::rd_kafka_queue_poll(queue, 10_000);
        assert!(!event.is_null() && rd::rd_kafka_event_error(event) == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
        rd::rd_kafka_event_destroy(event);
        rd::rd_kafka_queue_destroy(queue);
        rd::rd_kafka_AclBinding_destroy(binding);
    }
    // The broker applies its own metadata with a short delay.
    std::thread::sleep(Duration::from_millis(300));
}
