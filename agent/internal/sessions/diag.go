package sessions

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The little of linux/sock_diag.h and linux/inet_diag.h that is used here. Kernel ABI, frozen.
const (
	tcpDiagGetSock = 18 // the older request: the only one that asks for both families at once
	sockDestroy    = 21

	sizeofSockID   = 48 // struct inet_diag_sockid
	sizeofReq      = 60 // struct inet_diag_req
	sizeofReqV2    = 56 // struct inet_diag_req_v2
	sizeofDiagMsg  = 72 // struct inet_diag_msg
	attrBytecode   = 1  // INET_DIAG_REQ_BYTECODE
	sizeofBytecode = 4  // struct inet_diag_bc_op
	opJump         = 1  // INET_DIAG_BC_JMP
	opSourceGE     = 2  // INET_DIAG_BC_S_GE
	opSourceLE     = 3  // INET_DIAG_BC_S_LE
)

// TCP states, as bits. Only those in which a process of this host has, or will have, a live connection: an orphan in
// FIN_WAIT holds nobody up, and kernels before 6.12 may keep one for ever that is destroyed.
const (
	established = 1 << 1
	synRecv     = 1<<3 | 1<<12 // as the kernel tells it, and as it keeps it
	closeWait   = 1 << 8
	listening   = 1 << 10
)

// socket is one line of a dump.
type socket struct {
	family        uint8
	state         uint8
	local, remote netip.AddrPort // IPv4-mapped addresses unmapped
	id            [sizeofSockID]byte
}

// conn is a socket to the kernel's socket diagnosis, in the network namespace of the thread that opened it.
type conn struct {
	fd  int
	seq uint32
}

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open a sock_diag socket: %w", err)
	}
	// The kernel answers at once; the bound is for a kernel that does not.
	tv := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &conn{fd: fd}, nil
}

func (c *conn) close() { unix.Close(c.fd) }

// request sends one message.
func (c *conn) request(typ, flags uint16, body []byte) error {
	c.seq++
	ne := binary.NativeEndian
	b := make([]byte, 0, unix.SizeofNlMsghdr+len(body))
	b = ne.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(body)))
	b = ne.AppendUint16(b, typ)
	b = ne.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = ne.AppendUint32(b, c.seq)
	b = ne.AppendUint32(b, 0)
	b = append(b, body...)
	return unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

var errAnswer = errors.New("the kernel's answer cannot be read")

// receive hands over the messages that answer the last request, up to the end of a dump or an acknowledgement.
func (c *conn) receive(each func([]byte)) error {
	ne := binary.NativeEndian
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) > 0; {
			if len(b) < unix.SizeofNlMsghdr {
				return errAnswer
			}
			size, typ, seq := int(ne.Uint32(b)), ne.Uint16(b[4:]), ne.Uint32(b[8:])
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return errAnswer
			}
			body := b[unix.SizeofNlMsghdr:size]
			b = b[min((size+3)&^3, len(b)):]
			if seq != c.seq {
				continue // of an earlier request that was given up
			}
			switch typ {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				if len(body) < 4 {
					return errAnswer
				}
				if e := int32(ne.Uint32(body)); e != 0 {
					return unix.Errno(-e)
				}
				return nil
			default:
				each(body)
			}
		}
	}
}

// dump calls each for the TCP sockets in one of the states whose local port is one of ports: both families, one walk
// of the kernel's table. The kernel leaves the others out by itself.
func (c *conn) dump(states uint32, ports []uint16, each func(*socket)) error {
	body := make([]byte, sizeofReq)
	// struct inet_diag_req: family, src_len, dst_len, ext, id, states, dbs. This request ignores the family.
	binary.NativeEndian.PutUint32(body[4+sizeofSockID:], states)
	code := portFilter(ports)
	body = binary.NativeEndian.AppendUint16(body, uint16(4+len(code)))
	body = binary.NativeEndian.AppendUint16(body, attrBytecode)
	body = append(body, code...)
	if err := c.request(tcpDiagGetSock, unix.NLM_F_DUMP, body); err != nil {
		return err
	}
	var s socket
	bad := false
	err := c.receive(func(b []byte) {
		if !s.parse(b) {
			bad = true
			return
		}
		each(&s)
	})
	if err == nil && bad {
		err = errAnswer
	}
	return err
}

// portFilter is a program for the kernel's socket filter: local port is one of ports. Each port is two comparisons,
//
//	port >= p, else go on with the next port
//	port <= p, else go on with the next port
//	jump to the end: accept
//
// and what is left at the end jumps behind it, which rejects. The operand of a comparison stands in the number of a
// second, empty instruction. (A comparison for equality exists only in newer kernels.)
func portFilter(ports []uint16) []byte {
	const perPort = 5 * sizeofBytecode // two comparisons with operands, one jump
	total := len(ports)*perPort + sizeofBytecode
	var b []byte
	op := func(code byte, yes int, no uint16) {
		b = append(b, code, byte(yes))
		b = binary.NativeEndian.AppendUint16(b, no)
	}
	for _, p := range ports {
		op(opSourceGE, 2*sizeofBytecode, perPort)
		op(0, 0, p)
		op(opSourceLE, 2*sizeofBytecode, perPort-2*sizeofBytecode)
		op(0, 0, p)
		// A jump is always taken by its second number. The end of the program accepts.
		op(opJump, sizeofBytecode, uint16(total-len(b)))
	}
	op(opJump, sizeofBytecode, 2*sizeofBytecode) // 4 bytes behind the end: reject
	return b
}

// parse reads a struct inet_diag_msg: family, state, timer, retrans, id { sport, dport, src, dst, if, cookie } ...
func (s *socket) parse(b []byte) bool {
	if len(b) < sizeofDiagMsg {
		return false
	}
	s.family, s.state = b[0], b[1]
	copy(s.id[:], b[4:])
	be := binary.BigEndian
	addr := func(b []byte) netip.Addr {
		if s.family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16([16]byte(b[:16])).Unmap()
	}
	s.local = netip.AddrPortFrom(addr(s.id[4:]), be.Uint16(s.id[0:]))
	s.remote = netip.AddrPortFrom(addr(s.id[20:]), be.Uint16(s.id[2:]))
	return s.family == unix.AF_INET || s.family == unix.AF_INET6
}

// destroy ends one connection: its process sees an error, its peer a reset. The cookie in the id makes sure that it is
// the socket of the dump and no later one with the same addresses.
func (c *conn) destroy(s *socket) error {
	// struct inet_diag_req_v2: family, protocol, ext, pad, states, id.
	body := make([]byte, 8, sizeofReqV2)
	body[0], body[1] = s.family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(body[4:], ^uint32(0))
	body = append(body, s.id[:]...)
	if err := c.request(sockDestroy, unix.NLM_F_ACK, body); err != nil {
		return err
	}
	return c.receive(func([]byte) {})
}
