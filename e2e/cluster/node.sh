# Makes a node of the namespaces that this runs in, before anything of it is started.
#   node.sh <folder of the node> <its address/prefix> <its IPv6 address/prefix> <gateway> <IPv6 gateway>
set -eu

# The first process is the last to be ready: it has mounted /proc.
until [ "$(cat /proc/1/comm)" = pause ]; do sleep 0.01; done

folder=$1 address=$2 address6=$3 gateway=$4 gateway6=$5

# What a node writes outside of its own folder, it writes here; the machine's own stays as it is.
# /run is empty after each start, as on a machine.
mkdir -p "$folder/lib/kubelet" "$folder/log" "$folder/etc-cni"
resolv=$(cat /etc/resolv.conf 2>/dev/null || true)
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/lock
printf '%s\n' "$resolv" >/run/resolv.conf
mount --bind "$folder/lib" /var/lib
mount --bind "$folder/log" /var/log

# Volumes that the kubelet mounts later have to reach the containers that see its folder.
mount --bind /var/lib/kubelet /var/lib/kubelet
mount --make-rshared /var/lib/kubelet

# The kubelet insists on these, and they are the whole machine's: it finds them as it wants them, in plain files.
mkdir /run/tunables
for tunable in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
	kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	name=${tunable%=*}
	file=/run/tunables/$(printf '%s' "$name" | tr / .)
	printf '%s\n' "${tunable#*=}" >"$file"
	mount --bind "$file" "/proc/sys/$name"
done

ip link set lo up
ip link set eth0 up
ip addr add "$address" dev eth0
ip addr add "$address6" dev eth0 nodad
ip route add default via "$gateway"
ip route add default via "$gateway6"
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
