"""The list of everything in mitmproxy, h11 and h2 that the portal relies on without their promise.

Data only: `verify` reads it before anything of mitmproxy's is imported for use. `SOURCES` names
functions. The portal replaces one, calls it, or depends on what it calls and which attributes it
sets. So the digest of its source must be one of those in tested.json. `PRESENT` names what must
be there under that name.
"""

from typing import Final

HTTP = "mitmproxy.proxy.layers.http"

SOURCES: Final[dict[str, tuple[str, ...]]] = {
    "the guard behind every hook": (
        "mitmproxy.addonmanager:AddonManager.handle_lifecycle",
        "mitmproxy.proxy.mode_servers:ProxyConnectionHandler.handle_hook",
        "mitmproxy.proxy.server:ConnectionHandler.hook_task",
        "mitmproxy.proxy.server:ConnectionHandler.open_connection",
    ),
    "the order of the addons": (
        "mitmproxy.addonmanager:AddonManager.__init__",
        "mitmproxy.addonmanager:AddonManager.get",
        "mitmproxy.addonmanager:AddonManager.register",
        "mitmproxy.addonmanager:AddonManager.trigger_event",
        "mitmproxy.addonmanager:_get_name",
        "mitmproxy.addons:default_addons",
        "mitmproxy.addons.next_layer:NextLayer.next_layer",
        "mitmproxy.addons.tlsconfig:TlsConfig.tls_clienthello",
    ),
    "the map of connections": (
        "mitmproxy.addons.proxyserver:Proxyserver.__init__",
        "mitmproxy.addons.proxyserver:Proxyserver.register_connection",
        "mitmproxy.addons.proxyserver:Proxyserver.running",
        "mitmproxy.proxy.mode_servers:ServerInstance.handle_stream",
        "mitmproxy.proxy.server:ConnectionHandler.__init__",
        "mitmproxy.proxy.server:ConnectionHandler.handle_client",
        "mitmproxy.proxy.server:LiveConnectionHandler.__init__",
    ),
    "the end of what a session had open": (
        "mitmproxy.proxy.server:ConnectionHandler.handle_connection",
        "mitmproxy.proxy.server:ConnectionHandler.drain_writers",
        "mitmproxy.proxy.server:ConnectionHandler.server_event",
        "mitmproxy.proxy.server:ConnectionHandler.close_connection",
    ),
    "the listening sockets": (
        "mitmproxy.addons.proxyserver:Servers.__init__",
        "mitmproxy.addons.proxyserver:Servers.__iter__",
        "mitmproxy.addons.proxyserver:Servers.update",
        "mitmproxy.proxy.mode_servers:AsyncioServerInstance.__init__",
        "mitmproxy.proxy.mode_servers:AsyncioServerInstance._start",
        "mitmproxy.proxy.mode_servers:AsyncioServerInstance.listen",
        "mitmproxy.proxy.mode_servers:AsyncioServerInstance.listen_addrs",
    ),
    "early connections of known clients": (
        "mitmproxy.proxy.layers.modes:DestinationKnown.finish_start",
        f"{HTTP}:HttpStream.handle_connect_regular",
    ),
    "the name of a connection to an origin": (
        "mitmproxy.connection:Server.__setattr__",
        f"{HTTP}:GetHttpConnection.connection_spec_matches",
    ),
    "the layers": (
        "mitmproxy.proxy.layer:Layer.__init__",
        "mitmproxy.proxy.layer:Layer.handle_event",
        "mitmproxy.proxy.layer:Layer._Layer__process",
        "mitmproxy.proxy.layer:Layer._Layer__continue",
        "mitmproxy.proxy.layer:NextLayer._handle_event",
        "mitmproxy.proxy.layer:NextLayer._ask",
        "mitmproxy.proxy.context:Context.__init__",
        "mitmproxy.proxy.context:Context.fork",
        "mitmproxy.proxy.layers.tls:ServerTLSLayer.__init__",
        "mitmproxy.proxy.layers.tls:ClientTLSLayer.__init__",
        "mitmproxy.proxy.layers.tcp:TCPLayer.__init__",
        "mitmproxy.proxy.layers.udp:UDPLayer.__init__",
        "mitmproxy.proxy.tunnel:TunnelLayer.__init__",
    ),
    "answers before a body": (
        f"{HTTP}:HttpStream.__init__",
        f"{HTTP}:HttpStream._handle_event",
        f"{HTTP}:HttpStream.state_wait_for_request_headers",
        f"{HTTP}:HttpStream.state_consume_request_body",
        f"{HTTP}:HttpStream.state_done",
        f"{HTTP}:HttpStream.state_errored",
        f"{HTTP}:HttpStream.send_response",
        f"{HTTP}:HttpStream.flow_done",
        f"{HTTP}:HttpStream.check_killed",
        f"{HTTP}:HttpStream.handle_connect_finish",
        f"{HTTP}:HttpStream.passthrough",
        f"{HTTP}:HttpLayer.make_stream",
        f"{HTTP}:HttpLayer.event_to_child",
    ),
    "the bounds of HTTP/1": (
        f"{HTTP}:HttpLayer.__init__",
        f"{HTTP}:HttpLayer._handle_event",
        f"{HTTP}:HttpClient._handle_event",
        f"{HTTP}._http1:Http1Connection.__init__",
        f"{HTTP}._http1:Http1Connection._handle_event",
        f"{HTTP}._http1:Http1Connection.read_body",
        f"{HTTP}._http1:Http1Server.__init__",
        f"{HTTP}._http1:Http1Server.read_headers",
        f"{HTTP}._http1:Http1Client.__init__",
        f"{HTTP}._http1:Http1Client.read_headers",
        f"{HTTP}._http1:make_body_reader",
        "h11._connection:Connection.__init__",
        "h11._connection:Connection.receive_data",
        "h11._connection:Connection.next_event",
        "h11._connection:Connection._extract_next_receive_event",
        "h11._connection:Connection._get_io_object",
        "h11._readers:ChunkedReader.__init__",
        "h11._readers:ChunkedReader.read_eof",
        "h11._receivebuffer:ReceiveBuffer.__init__",
        "h11._receivebuffer:ReceiveBuffer.maybe_extract_lines",
    ),
    "interim responses": (
        f"{HTTP}:HttpStream.state_wait_for_response_headers",
        f"{HTTP}._http1:Http1Server.send",
        f"{HTTP}._http2:Http2Client.handle_h2_event",
        f"{HTTP}._http2:parse_h2_response_headers",
    ),
    "the bounds of HTTP/2": (
        f"{HTTP}._http2:Http2Connection.__init__",
        f"{HTTP}._http2:Http2Connection._handle_event",
        f"{HTTP}._http2:Http2Server.__init__",
        f"{HTTP}._http_h2:BufferedH2Connection.__init__",
        f"{HTTP}._http_h2:BufferedH2Connection.send_data",
    ),
    "options that must stay as they are": (
        "mitmproxy.optmanager:OptManager.__init__",
        "mitmproxy.optmanager:OptManager.__getattr__",
        "mitmproxy.optmanager:OptManager._notify_subscribers",
        "mitmproxy.optmanager:OptManager.process_deferred",
        "mitmproxy.optmanager:OptManager.rollback",
        "mitmproxy.optmanager:OptManager.set",
        "mitmproxy.optmanager:OptManager.subscribe",
        "mitmproxy.optmanager:OptManager.update_known",
        "mitmproxy.optmanager:_Option.set",
    ),
    "the log": (
        "mitmproxy.addons.errorcheck:ErrorCheck.__init__",
        "mitmproxy.addons.errorcheck:ErrorCheck.shutdown_if_errored",
        "mitmproxy.addons.errorcheck:ErrorCheckHandler.emit",
        "mitmproxy.addons.termlog:TermLog.__init__",
    ),
    "names": ("mitmproxy.addons.dns_resolver:GetaddrinfoFallbackResolver.lookup_ip",),
}

PRESENT: Final[dict[str, tuple[str, ...]]] = {
    "the guard behind every hook": (
        "mitmproxy.proxy.server_hooks:ServerConnectHook",
        "mitmproxy.proxy.server_hooks:ServerConnectionHookData",
    ),
    "the map of connections": ("mitmproxy.proxy.server:ConnectionIO",),
    "the bounds of HTTP/1": (
        f"{HTTP}:Http1Server",
        f"{HTTP}:Http1Client",
        f"{HTTP}._http1:ChunkedReader",
        f"{HTTP}._http1:ReceiveBuffer",
        "h11._receivebuffer:blank_line_regex",
    ),
    "the bounds of HTTP/2": (
        f"{HTTP}:Http2Server",
        f"{HTTP}:Http2Client",
        f"{HTTP}._http2:BufferedH2Connection",
    ),
    "names": (
        "mitmproxy_rs:dns.get_system_dns_servers",
        "mitmproxy_rs:dns.DnsResolver.lookup_ip",
    ),
}
