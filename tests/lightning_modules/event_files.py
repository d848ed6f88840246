"""Writes recordings in the file formats and folders in which the public event-camera sets are distributed."""

import struct

import numpy as np

from lightning_modules.data import make_events

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def random_events(seed, count=60, height=34, width=34, duration_us=300_000, start_us=0):
    random = np.random.default_rng(seed)
    return make_events(
        random.integers(0, width, count),
        random.integers(0, height, count),
        start_us + np.sort(random.integers(0, duration_us, count)),
        random.integers(0, 2, count),
    )


def columns(events):
    return (events[field].astype(np.int64) for field in "xytp")


def atis_bin(events):
    """N-MNIST's and N-Caltech101's: 13 bits of time; an event of row 240 wherever they overflow."""
    out, high = bytearray(), 0
    for x, y, t, p in zip(*columns(events), strict=True):
        while t >> 13 > high:
            high += 1
            out += bytes((0, 240, 0, 0, 0))
        low = t & 0x1FFF
        out += bytes((x, y, p << 7, low >> 8, low & 255))
    return bytes(out)


def dat(events, header=b"% Data file containing CD events.\n% Version 2\n", kind=0, size=8):
    x, y, t, p = columns(events)
    words = np.stack((t, x | y << 14 | p << 28), axis=1).astype("<u4")
    return header + (bytes((kind, size)) if header else b"") + words.tobytes()


def dvs128_aedat2(events, header=b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n"):
    x, y, t, p = columns(events)
    words = np.stack(((127 - x) << 8 | (127 - y) << 1 | 1 - p, t), axis=1).astype(">u4")
    return header + words.tobytes()


def aedat3(events, per_packet=50, invalid=(), others=True, end=True):
    """Packets of polarity events; with ``others`` a packet of special events between them."""
    out = bytearray(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n" + (b"#!END-HEADER\r\n" if end else b""))
    x, y, t, p = columns(events)
    valid = np.ones(len(events), np.int64)
    valid[list(invalid)] = 0
    words = np.stack((valid | p << 1 | y << 2 | x << 17, t & 0x7FFFFFFF), axis=1).astype("<u4")
    for low in range(0, len(events), per_packet):
        part = slice(low, low + per_packet)
        count, overflow = len(words[part]), int(t[low] >> 31)
        out += struct.pack("<HHIIIIII", 1, 1, 8, 4, overflow, count, count, int(valid[part].sum()))
        out += words[part].tobytes()
        if others:
            out += struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + bytes(8)
    return bytes(out)


def lz4_frame(data, blocks=2):
    """Literals alone, in blocks; what compresses is tested with the real file."""
    out = bytearray(
        struct.pack("<IBBB", 0x184D2204, 0b01000000, 0x40, 0xC0)
    )  # the last byte is the checksum of the two before it
    for part in np.array_split(np.frombuffer(data, np.uint8), blocks):
        length = len(part)
        sequence = bytearray([min(length, 15) << 4])
        if length >= 15:
            sequence += bytes([255] * ((length - 15) // 255) + [(length - 15) % 255])
        sequence += part.tobytes()
        out += struct.pack("<I", len(sequence)) + sequence
    return bytes(out + bytes(4))


def flatbuffer(identifier, fields, form):
    """A root table whose fields follow it directly; ``form`` is a struct's format for its inline part."""
    inline = struct.calcsize("<" + form)
    offsets, at = [], 4
    for code in form:
        offsets.append(at)
        at += struct.calcsize("<" + code)
    vtable = struct.pack("<HH", 4 + 2 * len(offsets), 4 + inline) + b"".join(struct.pack("<H", o) for o in offsets)
    table = 8 + len(vtable)
    return struct.pack("<I", table) + identifier + vtable + struct.pack("<i", len(vtable)), fields


def aedat4(events, compression=1, per_packet=40, kind="EVTS", table_of_contents=True, pack=None):
    """DV's format: header, packets of stream 0 with events, one packet of another stream."""
    xml = (
        f'<dv version="2.0"><node name="outInfo" path="/outInfo/"><node name="0" path="/outInfo/0/">'
        f'<attr key="typeIdentifier" type="string">{kind}</attr></node><node name="1" path="/outInfo/1/">'
        f'<attr key="typeIdentifier" type="string">IMUS</attr></node></node></dv>'
    ).encode()

    def header(position):
        start, _ = flatbuffer(b"IOHE", None, "iqI")
        body = start + struct.pack("<iqI", compression, position, 4)
        return body + struct.pack("<I", len(xml)) + xml + b"\0"

    pack = pack or (lz4_frame if compression else bytes)
    packets = bytearray()
    for low in range(0, len(events), per_packet):
        part = events[low : low + per_packet]
        structs = np.zeros(len(part), {"names": list("txyp"), "formats": ["<i8", "<i2", "<i2", "?"], "itemsize": 16})
        for field in "txyp":
            structs[field] = part[field]
        start, _ = flatbuffer(b"EVTS", None, "I")
        body = start + struct.pack("<II", 4, len(part)) + structs.tobytes()
        body = pack(struct.pack("<I", len(body)) + body)
        packets += struct.pack("<ii", 0, len(body)) + body + struct.pack("<ii", 1, 3) + b"imu"
    size = len(header(0))
    position = 14 + 4 + size + len(packets) if table_of_contents else -1
    contents = b"table of contents" if table_of_contents else b""
    return b"#!AER-DAT4.0\r\n" + struct.pack("<I", size) + header(position) + bytes(packets) + contents


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_nmnist(folder, train=3, test=1):
    for part, each in (("Train", train), ("Test", test)):
        for number in range(10 * each):
            events = random_events(number)
            write(folder / part / str(number % 10) / f"{number:05d}.bin", atis_bin(events))
    return folder


def write_ncaltech101(folder, classes=101, each=3):
    names = ["BACKGROUND_Google", "Faces_easy", *(f"class_{number:03d}" for number in range(classes - 2))]
    for label, name in enumerate(names):
        for number in range(1, each + 1):
            events = random_events([label, number], 80, 170, 230)
            write(folder / "Caltech101" / name / f"image_{number:04d}.bin", atis_bin(events))
    return folder


def write_ncars(folder, train=10, test=3):
    """The outer archive's layout, after the inner archives are unpacked."""
    for part, each in (("train", train), ("test", test)):
        for kind in ("background", "cars"):
            for number in range(each):
                events = random_events(number, 80, 60, 80, 99_000)
                write(folder / f"n-cars_{part}" / kind / f"obj_{number:06d}_td.dat", dat(events))
    return folder


def write_cifar10_dvs(folder, each=10, form="aedat"):
    for label, name in enumerate(CIFAR10):
        for number in range(each):
            events = random_events([label, number], 100, 128, 128, 1_300_000, start_us=5_000_000)
            content = dvs128_aedat2(events) if form == "aedat" else aedat4(events)
            write(folder / name / f"cifar10_{name}_{number}.{form}", content)
    return folder


def write_dvs_gesture(folder, users=(1, 2, 3, 4), test_users=(24,), gesture_us=3_200_000, shorten_us=0):
    """IBM's layout: one AEDAT 3.1 recording with its table of labels per user and light, and the lists of trials."""
    lists = {"train": [], "test": []}
    for user in (*users, *test_users):
        name = f"user{user:02d}_led"
        rows, parts, t = ["class,startTime_usec,endTime_usec"], [], 7_000_000
        for label in range(1, 12):
            duration = gesture_us - shorten_us * label
            parts.append(random_events([user, label], 120, 128, 128, duration, start_us=t))
            rows.append(f"{label},{t},{t + duration}")
            t += duration + 500_000
        write(folder / f"{name}.aedat", aedat3(np.concatenate(parts), 200))
        write(folder / f"{name}_labels.csv", ("\n".join(rows) + "\n").encode())
        lists["test" if user in test_users else "train"].append(f"{name}.aedat")
    for part, names in lists.items():
        write(folder / f"trials_to_{part}.txt", ("\n".join(names) + "\n\n").encode())
    return folder


def write_dvs_gesture_npy(folder, users=(1, 2, 3, 4), test_users=(24,), gesture_us=3_200_000, shorten_us=0):
    """tonic's layout: one array of x, y, p and milliseconds for each gesture."""
    for user in (*users, *test_users):
        part = "ibmGestureTest" if user in test_users else "ibmGestureTrain"
        for label in range(11):
            x, y, t, p = columns(random_events([user, label], 120, 128, 128, gesture_us - shorten_us * label))
            path = folder / part / f"user{user:02d}_led" / f"{label}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.stack((x, y, p, t // 1000), axis=1).astype(float))
    return folder
