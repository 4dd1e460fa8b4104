package gossip

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// memberlist's message types, as they stand on the wire (its net.go).
const (
	typePing         = 0
	typeIndirectPing = 1
	typeAck          = 2
	typeSuspect      = 3
	typeAlive        = 4
	typeDead         = 5
	typePushPull     = 6
	typeCompound     = 7
	typeUser         = 8
	typeEncrypt      = 10
	typeNack         = 11
	typeCRC          = 12
	typeError        = 13
	typeLabel        = 244
)

const (
	sealVersion = 1  // AES-GCM without padding; version 0 is padded, and its padding is trusted unchecked: refused
	nonceSize   = 12 //
	tagSize     = 16 //
	sealed      = 1 + nonceSize + tagSize
	frameHeader = 5 // type, 4 bytes of length

	// maxPacket is the largest UDP payload that is looked at. Ours stay below 1400.
	maxPacket = 2048
	// maxFrame is the largest stream frame: a message of MaxStream with what stands around it.
	maxFrame = MaxStream + 4096
	// maxNodes bounds the members of a push/pull; maxMembers is lower, but a peer may still remember dead ones.
	maxNodes = 4 * maxMembers
)

var (
	errLabel   = errors.New("not our label")
	errSeal    = errors.New("not sealed with a key of ours")
	errShape   = errors.New("sealed with our key, but no message that a member sends")
	errHungUp  = errors.New("it hung up without an answer: has it the same key and label?")
	errTooLong = errors.New("longer than a member sends")
)

// seal opens what came from the wire. A frame is
//
//	label 244, length, label   (packets, and the caller's side of a stream)
//	type 10, uint32 length     (streams only)
//	version 1, nonce 12, AES-GCM ciphertext, tag 16
//
// with the label (for streams: type, length, label) as additional data. Everything is opened and looked at here before
// memberlist sees it: a correctly sealed empty stream or a wrong padding would panic in there, in a goroutine of its
// own, and end the agent.
type seal struct {
	label string // never empty
	plain bool   // no key: nothing is sealed (loopback only)
	aeads atomic.Pointer[[]cipher.AEAD]
}

// setKeys takes the ring over, primary first.
func (s *seal) setKeys(keys [][]byte) error {
	list := make([]cipher.AEAD, 0, len(keys))
	for _, k := range keys {
		b, err := aes.NewCipher(k)
		if err != nil {
			return err
		}
		a, err := cipher.NewGCM(b)
		if err != nil {
			return err
		}
		list = append(list, a)
	}
	s.aeads.Store(&list)
	return nil
}

func (s *seal) open(dst, b, extra []byte) ([]byte, error) {
	if len(b) <= sealed || b[0] != sealVersion {
		return nil, errSeal // <=: an empty message is none
	}
	for _, a := range *s.aeads.Load() {
		if p, err := a.Open(dst[:0], b[1:1+nonceSize], b[1+nonceSize:], extra); err == nil {
			return p, nil
		}
	}
	return nil, errSeal
}

// cutLabel takes the label off the front of a packet.
func (s *seal) cutLabel(b []byte) ([]byte, error) {
	n := len(s.label)
	if len(b) < 2+n || b[0] != typeLabel || int(b[1]) != n || string(b[2:2+n]) != s.label {
		return nil, errLabel
	}
	return b[2+n:], nil
}

// openPacket opens a datagram into dst's space and returns the message in it, whose first byte is its type.
func (s *seal) openPacket(dst, b []byte) ([]byte, error) {
	if len(b) > maxPacket {
		return nil, errTooLong
	}
	b, err := s.cutLabel(b)
	if err != nil {
		return nil, err
	}
	if !s.plain {
		if b, err = s.open(dst, b, []byte(s.label)); err != nil {
			return nil, err
		}
	}
	if len(b) >= 5 && b[0] == typeCRC {
		if crc32.ChecksumIEEE(b[5:]) != binary.BigEndian.Uint32(b[1:5]) {
			return nil, errShape
		}
		b = b[5:]
	}
	return b, checkPacket(b)
}

// checkPacket lets pass what a member sends: membership messages, alone or in one compound, or a user message alone.
func checkPacket(b []byte) error {
	if len(b) == 0 {
		return errShape
	}
	if b[0] != typeCompound {
		if !membership(b[0]) && b[0] != typeUser {
			return errShape
		}
		return nil
	}
	// A count, the lengths, the parts. None is a compound again, and none is compressed: a member does neither.
	if len(b) < 2 {
		return errShape
	}
	n := int(b[1])
	if len(b) < 2+2*n {
		return errShape
	}
	parts := b[2+2*n:]
	for i := range n {
		l := int(binary.BigEndian.Uint16(b[2+2*i:]))
		if l == 0 || l > len(parts) || !membership(parts[0]) {
			return errShape
		}
		parts = parts[l:]
	}
	if len(parts) > 0 {
		return errShape
	}
	return nil
}

func membership(t byte) bool {
	switch t {
	case typePing, typeIndirectPing, typeAck, typeNack, typeSuspect, typeAlive, typeDead:
		return true
	}
	return false
}

// readFrame reads one stream frame and returns it whole, as memberlist wants to read it again. The caller's side of a
// stream (asked) carries the label; the answer does not. headerRead, if given, is called once the header is there.
func (s *seal) readFrame(r io.Reader, asked bool, headerRead func()) ([]byte, error) {
	skip := 0
	if asked {
		skip = 2 + len(s.label)
	}
	head := make([]byte, skip+frameHeader)
	if _, err := io.ReadFull(r, head[:skip]); err != nil {
		return nil, err
	}
	if skip > 0 {
		if _, err := s.cutLabel(head[:skip]); err != nil {
			return nil, err
		}
	}
	if _, err := io.ReadFull(r, head[skip:skip+1]); err != nil {
		return nil, err
	}
	if head[skip] != typeEncrypt {
		return nil, errSeal
	}
	if _, err := io.ReadFull(r, head[skip+1:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[skip+1:])
	if n <= sealed {
		return nil, errShape
	}
	if n > maxFrame {
		return nil, errTooLong
	}
	if headerRead != nil {
		headerRead()
	}
	// Grown as it comes: a liar about the length costs what it sends.
	buf := bytes.NewBuffer(head)
	if _, err := io.CopyN(buf, r, int64(n)); err != nil {
		return nil, err
	}
	frame := buf.Bytes()
	extra := append(append(make([]byte, 0, frameHeader+len(s.label)), frame[skip:skip+frameHeader]...), s.label...)
	plain, err := s.open(nil, frame[skip+frameHeader:], extra)
	if err != nil {
		return nil, err
	}
	return frame, checkStream(plain, asked)
}

// readPlain reads the beginning of an unsealed stream: the label and a type.
func (s *seal) readPlain(r io.Reader) ([]byte, error) {
	head := make([]byte, 2+len(s.label)+1)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	t, err := s.cutLabel(head)
	if err != nil {
		return nil, err
	}
	if t[0] != typePushPull && t[0] != typeUser && t[0] != typePing {
		return nil, errSeal
	}
	return head, nil
}

type pushPullHeader struct {
	Nodes        int
	UserStateLen int
	Join         bool
}

type userHeader struct {
	UserMsgLen int
}

// checkStream lets pass what a member asks or answers on a stream. Numbers by which memberlist would allocate before
// it reads are compared with what is there.
func checkStream(b []byte, asked bool) error {
	if len(b) == 0 {
		return errShape
	}
	body := b[1:]
	switch {
	case b[0] == typePushPull:
		var h pushPullHeader
		if err := decodeHeader(body, &h); err != nil {
			return err
		}
		if h.Nodes < 0 || h.Nodes > maxNodes || h.UserStateLen < 0 || h.UserStateLen > maxDigest+maxEnvelope || h.UserStateLen > len(body) {
			return errShape
		}
		return nil
	case asked && b[0] == typeUser:
		var h userHeader
		if err := decodeHeader(body, &h); err != nil {
			return err
		}
		if h.UserMsgLen < 0 || h.UserMsgLen > len(body) {
			return errShape
		}
		return nil
	case asked && b[0] == typePing, !asked && (b[0] == typeAck || b[0] == typeError):
		return nil
	}
	return errShape
}

func decodeHeader(b []byte, to any) (err error) {
	defer func() { // the library returns its panics as errors; this is for the one that it forgets
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errShape, r)
		}
	}()
	h := codec.MsgpackHandle{}
	if codec.NewDecoder(bytes.NewReader(b), &h).Decode(to) != nil {
		return errShape
	}
	return nil
}
