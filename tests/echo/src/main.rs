//! `udp-echo ADDRESS`: sends each datagram back to where it came from, for ever.

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "0.0.0.0:7".to_owned());
    let socket = std::net::UdpSocket::bind(address)?;
    let mut datagram = vec![0; 65_536];
    loop {
        let (length, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(&datagram[..length], from)?;
    }
}
