#!/bin/sh
# second-chance.sh on|off|look ADDRESS PEER: what to do with a packet of a connection that is not ours.
#
# When the virtual address has moved, or a route has changed, packets of connections that the other
# machine is still finishing come here. The kernel would reset them. With "on" they are passed to
# PEER, once: if it does not know them either, it resets them. "look" (for notify_master) switches
# it on if PEER is alive, and off if it is dead, so that clients hear of it at once.
#
# Both machines have ADDRESS on their loopback device, but tell nobody (arp_ignore, arp_announce):
# who has lost it can finish what it has begun. Wants Linux with nftables, and root.
set -eu

what=$1 address=$2 peer=$3

if [ "$what" = look ]; then
    if ping -c 1 -W 0.3 "$peer" >/dev/null; then what=on; else what=off; fi
fi

nft delete table ip second_chance 2>/dev/null || true
[ "$what" = on ] || exit 0

nft -f - <<END
table ip second_chance {
    chain prerouting {
        type filter hook prerouting priority mangle;
        ip daddr != $address accept
        tcp flags & (syn | ack) == syn accept           # a new connection: ours
        ip dscp cs1 accept                              # the other one does not know it either
        meta l4proto tcp socket wildcard 1 goto pass_on # nothing but the open port fits
        meta l4proto tcp socket transparent 0 accept    # one that we know
        meta l4proto tcp goto pass_on
    }
    chain pass_on {
        ip dscp set cs1 meta mark set 1
    }
}
END

# Marked packets go to the other machine, although the address is one of ours.
sysctl -q net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 \
    net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0 \
    net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
ip address replace "$address/32" dev lo
ip route replace default via "$peer" table 51
ip rule | grep -q "fwmark 0x1 lookup 51" || ip rule add pref 10 fwmark 1 lookup 51
ip rule | grep -q "^20:.*lookup local" || { ip rule add pref 20 lookup local; ip rule del pref 0; }
