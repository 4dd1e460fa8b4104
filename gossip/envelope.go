package gossip

import (
	"encoding/binary"
	"errors"
)

// A user message or a digest of ours, inside memberlist's own message:
//
//	version 1, kind, length of the sender's name, name, payload
//
// memberlist does not tell who sent a message, hence the name. The payload of a batch is a sequence of messages, each
// after its length as a uvarint; that of the other kinds is one message.
const (
	envelopeVersion = 1

	kindOne    = 1
	kindBatch  = 2
	kindDigest = 3
	kindBye    = 4 // the session that ends

	maxName     = 64
	maxEnvelope = 3 + maxName

	// MaxPacket is the largest message that Send takes, in bytes. Cluster.PacketRoom may say less.
	MaxPacket = 1200
	// MaxStream is the largest message that Stream takes, in bytes.
	MaxStream = 1 << 20
	// maxDigest bounds what rides on a push/pull, in bytes.
	maxDigest = 8 << 10
	// batchSize is where a worker stops packing messages into one stream, in bytes.
	batchSize = 256 << 10
	// maxBatch is how many messages one batch may hold: the receiver keeps a little for each.
	maxBatch = 4096
)

var errEnvelope = errors.New("no envelope of this version")

type envelope struct {
	kind    byte
	from    string
	payload []byte
}

func appendEnvelope(b []byte, kind byte, from string) []byte {
	b = append(b, envelopeVersion, kind, byte(len(from)))
	return append(b, from...)
}

// openEnvelope does not copy: the payload is part of b.
func openEnvelope(b []byte) (e envelope, err error) {
	if len(b) < 3 || b[0] != envelopeVersion {
		return e, errEnvelope
	}
	n := int(b[2])
	if n == 0 || n > maxName || len(b) < 3+n {
		return e, errEnvelope
	}
	e = envelope{b[1], string(b[3 : 3+n]), b[3+n:]}
	switch e.kind {
	case kindOne, kindBatch, kindDigest, kindBye:
	default:
		return e, errEnvelope
	}
	if !validName(e.from) {
		return e, errEnvelope
	}
	return e, nil
}

func appendBatched(b, msg []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(msg))), msg...)
}

// openBatch splits a batch, without copying. A batch with a fault in it is refused whole.
func openBatch(b []byte) (list [][]byte, err error) {
	for len(b) > 0 {
		n, w := binary.Uvarint(b)
		if w <= 0 || n == 0 || n > uint64(len(b)-w) || len(list) == maxBatch {
			return nil, errEnvelope
		}
		list = append(list, b[w:w+int(n):w+int(n)])
		b = b[w+int(n):]
	}
	return list, nil
}

// validName says whether a member may have this name: a host name, or what looks like one, of at most 64 bytes.
func validName(s string) bool {
	if s == "" || len(s) > maxName || s[0] == '-' || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_':
		default:
			return false
		}
	}
	return true
}
