package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
)

// errNoNetwork is returned when each of the lab's networks is in use.
var errNoNetwork = errors.New("no free network in 10.99.0.0/16")

// freeNetwork chooses a /24 of 10.99.0.0/16 for a lab: the one its id points
// at, or the next that overlaps nothing in use. The same id gets the same
// network as long as nobody takes it.
func freeNetwork(id string, used []netip.Prefix) (host, node string, err error) {
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		return "", "", fmt.Errorf("lab id %q: %w", id, err)
	}
	for i := range uint64(256) {
		third := byte((n + i) % 256)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, third, 0}), 24)
		free := true
		for _, u := range used {
			free = free && !u.Overlaps(p)
		}
		if free {
			return netip.AddrFrom4([4]byte{10, 99, third, 1}).String(), netip.AddrFrom4([4]byte{10, 99, third, 2}).String(), nil
		}
	}
	return "", "", errNoNetwork
}

// usedNetworks are the networks this machine has addresses in or routes to,
// the default route left out.
func usedNetworks() ([]netip.Prefix, error) {
	var used []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		a, ok := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		if ok && ones > 0 {
			used = append(used, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		add(a.IPNet)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		add(r.Dst)
	}
	return used, nil
}

// connect makes the veth pair and moves its other end into the network
// namespace of process pid, where it is eth0.
func connect(link, host string, pid int) error {
	la := netlink.NewLinkAttrs()
	la.Name = link
	veth := &netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s: %w", link, err)
	}
	return configure(link, host+"/24")
}

// configure gives a link an address and sets it up.
func configure(link, cidr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("add %s to %s: %w", cidr, link, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", link, err)
	}
	return nil
}

func linkUp(link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func hasLink(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// removeLink deletes a link; one that is not there is no error.
func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// defaultRoute sends what is not on a link of its own to gateway.
func defaultRoute(gateway string) error {
	return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)})
}
